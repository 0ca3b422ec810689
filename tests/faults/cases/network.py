"""Networks that fail between two parties.

Where this process may have a network namespace of its own, the kernel drops the packets; else the
wires hold back what passes one way, and the cases of lost packets are not run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tests.faults import packets
from tests.faults.case import Case, Expect
from tests.faults.cases.processes import NO_ROUTER, NO_TIER
from tests.faults.mesh import FaultMesh
from tests.faults.relay import Relay
from tests.faults.surroundings import AROUND, MONITOR, REDIS, ROUTER_NAMES, START, TRAINER

CUT_S = 0.8
LOSS = 0.02
SLOW_S = 0.02
IS_CUT = "cut one way, then the other"
CUT_ENDS, ENDS = f"after {CUT_S:g} s each", f"after {2 * CUT_S:g} s"
LOSES = f"{LOSS:.0%} of its packets, both ways"
TAKES = f"{SLOW_S * 1e3:.0f} ms more, each way"
_UNHARMED = Expect(on_time_share=0.99)
Wires = Callable[[], Sequence[Relay]]
Fault = Callable[[FaultMesh], Awaitable[None]]


def cut(wires: Wires) -> Fault:
    """Returns the fault that lets nothing through, first one way, then the other."""

    async def fault(_: FaultMesh) -> None:
        for is_back in (False, True):
            _drop(wires(), is_back=is_back)
            try:
                await asyncio.sleep(CUT_S)
            finally:
                _mend(wires())

    return fault


def lose(wires: Wires) -> Fault:
    """Returns the fault that loses packets."""

    async def fault(_: FaultMesh) -> None:
        loss = packets.here()
        assert isinstance(loss, packets.PacketLoss)
        for wire in wires():
            for towards in (True, False):
                loss.drop(wire.port, towards=towards, share=LOSS)
        try:
            await asyncio.sleep(2 * CUT_S)
        finally:
            _mend(wires())

    return fault


def slow(wires: Wires) -> Fault:
    """Returns the fault that delays everything."""

    async def fault(_: FaultMesh) -> None:
        for wire in wires():
            wire.there.delay_s = wire.back.delay_s = SLOW_S
        try:
            await asyncio.sleep(2 * CUT_S)
        finally:
            _mend(wires())

    return fault


def _drop(wires: Sequence[Relay], *, is_back: bool) -> None:
    loss = packets.here()
    for wire in wires:
        if isinstance(loss, packets.PacketLoss):
            loss.drop(wire.port, towards=not is_back)
        else:
            (wire.back if is_back else wire.there).flows.clear()


def _mend(wires: Sequence[Relay]) -> None:
    loss = packets.here()
    if isinstance(loss, packets.PacketLoss):
        loss.mend()
    for wire in wires:
        wire.mend()


def _all() -> Sequence[Relay]:
    return [*AROUND.wires.values()]


def _case(name: str, between: str, wires: Wires, expect: Expect = _UNHARMED) -> Case:
    return Case(
        name=f"cut-{name}",
        done=f"network between {between} {IS_CUT}",
        ends=CUT_ENDS,
        fault=cut(wires),
        expect=expect,
        start=START,
    )


CASES = [
    _case("routers-redis", "routers and Redis", lambda: AROUND.to(REDIS, *ROUTER_NAMES)),
    _case(
        "others-redis",
        "load-monitor and trainer, and Redis",
        lambda: AROUND.to(REDIS, MONITOR, TRAINER),
    ),
    _case("routers-monitor", "routers and load-monitor", lambda: AROUND.to(MONITOR, *ROUTER_NAMES)),
    _case(
        "trainer-others",
        "the trainer and routers, and the monitor",
        lambda: [*AROUND.to(TRAINER), *AROUND.to(MONITOR, TRAINER)],
    ),
    _case(
        "routers-triton",
        "everybody and one of two endpoints",
        lambda: [next(w for (who, _), w in AROUND.wires.items() if who == "routers")],
        Expect(reasons=NO_TIER, on_time_share=0.9, recovery_s=3.0, whole_s=15.0),
    ),
    _case(
        "client-router",
        "clients and one of two routers",
        lambda: AROUND.to(ROUTER_NAMES[0], "client"),
        Expect(
            reasons=NO_ROUTER | {"TRANSPORT_DEADLINE_EXCEEDED"}, on_time_share=0.6, recovery_s=3.0
        ),
    ),
    Case(
        name="network-loss",
        done=f"every link loses {LOSES}",
        ends=ENDS,
        fault=lose(_all),
        expect=Expect(on_time_share=0.97),
        start=START,
        needs=packets.problem,
    ),
    Case(
        name="network-slow",
        done=f"every link takes {TAKES}",
        ends=ENDS,
        fault=slow(_all),
        expect=_UNHARMED,
        start=START,
    ),
]
