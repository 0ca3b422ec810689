"""Processes that are killed and frozen."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import Awaitable, Callable

from tests.faults.case import Case, Expect, Start
from tests.faults.mesh import FaultMesh

FREEZE_S = 5.0
ROUTER = "router-inference-0"
NO_ROUTER = frozenset({"TRANSPORT_UNAVAILABLE", "TRANSPORT_CANCELLED"})
"""What a request may end with whose router is gone."""
BUSY = frozenset({"DEADLINE_NOT_REACHABLE", "DEADLINE_EXCEEDED"})
"""What it may end with while tiers are behind."""
NO_TIER = BUSY | {"NO_USABLE_ENDPOINT", "ENDPOINT_FAILED"}
"""What it may end with while no tier answers."""


def kill(name: str) -> Callable[[FaultMesh], Awaitable[None]]:
    """Returns the fault that kills a process."""

    async def fault(mesh: FaultMesh) -> None:
        mesh.kill(name)

    return fault


def freeze(name: str) -> Callable[[FaultMesh], Awaitable[None]]:
    """Returns the fault that stops a process, with all below it, for a while."""

    async def fault(mesh: FaultMesh) -> None:
        mesh.freeze(name)
        try:
            await asyncio.sleep(FREEZE_S)
        finally:
            mesh.thaw(name)

    return fault


async def _kill_worker(mesh: FaultMesh) -> None:
    mesh.process(ROUTER).children()[0].kill()


async def _stop_router(mesh: FaultMesh) -> None:
    mesh.signal(ROUTER, signal.SIGTERM)


_WHAT = {
    "redis": "Redis",
    "load-monitor": "load-monitor",
    "trainer": "trainer",
    ROUTER: "one of two routers",
    "triton": "Triton",
}
_KILLED = {
    "redis": Expect(on_time_share=0.99),
    "load-monitor": Expect(on_time_share=0.99),
    "trainer": Expect(on_time_share=0.99, whole_s=20.0),
    ROUTER: Expect(reasons=NO_ROUTER, on_time_share=0.94, whole_s=30.0),
    "triton": Expect(reasons=NO_TIER, on_time_share=0.0, recovery_s=40.0, whole_s=40.0),
}
_FROZEN = {
    "redis": Expect(on_time_share=0.99),
    "load-monitor": Expect(on_time_share=0.99),
    "trainer": Expect(on_time_share=0.99),
    ROUTER: Expect(
        # Those that lay in its socket it finds late when it goes on.
        reasons=NO_ROUTER | BUSY | {"TRANSPORT_DEADLINE_EXCEEDED"},
        on_time_share=0.5,
        recovery_s=5.0,
    ),
    "triton": Expect(reasons=NO_TIER, on_time_share=0.0, recovery_s=15.0, whole_s=20.0),
}


def _short(name: str) -> str:
    return {"load-monitor": "monitor", ROUTER: "router"}.get(name, name)


CASES = [
    *(
        Case(
            name=f"{_short(name)}-kill",
            done=f"kill -9 of {what}",
            ends="its supervisor starts it again",
            fault=kill(name),
            expect=dataclasses.replace(_KILLED[name], restarts={name: 1}),
        )
        for name, what in _WHAT.items()
    ),
    *(
        Case(
            name=f"{_short(name)}-freeze",
            done=f"{what} frozen (SIGSTOP)",
            ends=f"SIGCONT after {FREEZE_S:g} s",
            fault=freeze(name),
            expect=_FROZEN[name],
        )
        for name, what in _WHAT.items()
    ),
    Case(
        name="router-stop",
        done="SIGTERM to one of two routers",
        ends="its supervisor starts it again",
        fault=_stop_router,
        expect=Expect(on_time_share=0.99, whole_s=30.0, restarts={ROUTER: 1}),
    ),
    Case(
        name="worker-kill",
        done="kill -9 of one of a router's two workers",
        ends="the router starts another",
        fault=_kill_worker,
        expect=Expect(
            reasons=NO_ROUTER,
            on_time_share=0.94,
            whole_s=30.0,
            may_lose=frozenset({"counts"}),
        ),
        start=Start(sections={"router_inference": {"workers": 2}}),
    ),
]
