"""What clients and operators do to a mesh: cancel, restart, start twice, ask for too much."""

from __future__ import annotations

import asyncio
import random
import signal

from tests.faults.case import Case, Expect, Start
from tests.faults.cases.processes import BUSY
from tests.faults.load import settle
from tests.faults.mesh import TASKS, FaultMesh

CANCELS = 100
CANCEL_SPAN_S = 4.0
LIMIT_S = 60.0
TOGETHER_S = 6.0
"""How long two of what there should be one of run."""
OVERLOAD_S = 60.0
FULL_RPS = 35.0
"""What the device of the overload case carries, about, all of it on the smallest tier."""
CALM_RPS = 15.0
SLOW = Start(device_count=1, time_scale=40.0)
"""A device in slow motion: what overloads it costs this machine little."""


async def _cancel(mesh: FaultMesh) -> None:
    """Sends requests that their callers give up after random times, up to a whole answer's."""
    rng = random.Random()
    rate_rps = CANCELS / CANCEL_SPAN_S
    parts = 5
    await asyncio.gather(
        *(
            mesh.load(
                rate_rps / parts,
                CANCEL_SPAN_S + parts / rate_rps / 2,
                process="uniform",
                cancel_share=1.0,
                cancel_after_s=rng.uniform(0.0, 0.2),
                stream=number % 2 == 0,
                prompts={task: [{"text": "one more word " * 20}] for task in TASKS},
                seed=number,
            )
            for number in range(parts)
        )
    )


async def _restart_routers(mesh: FaultMesh) -> None:
    """Stops each router and waits until it is back before the next is stopped."""
    for name in mesh.router_names:
        before = mesh.starts()[name]
        mesh.signal(name, signal.SIGTERM)

        async def is_back(name: str = name, before: int = before) -> bool:
            return mesh.starts()[name] > before and not await mesh.what_is_missing()

        await settle(is_back, LIMIT_S)


async def _second_monitor(mesh: FaultMesh) -> None:
    async with mesh.another("load_monitor", "load-monitor-2"):
        await asyncio.sleep(TOGETHER_S)


async def _second_trainer(mesh: FaultMesh) -> None:
    async with mesh.another("trainer", "trainer-2"):
        await asyncio.sleep(TOGETHER_S)


async def _overload(mesh: FaultMesh) -> None:
    await mesh.load(3.0 * FULL_RPS - CALM_RPS, OVERLOAD_S, seed=3)


CASES = [
    Case(
        name="cancellations",
        done=f"{CANCELS} requests, half of them streams, given up after 0 to 0.2 s",
        ends="they end",
        fault=_cancel,
        expect=Expect(reasons=frozenset({"CANCELLED"})),
    ),
    Case(
        name="router-restarts",
        done="both routers stopped (SIGTERM) in turn",
        ends="each is started again before the next is stopped",
        fault=_restart_routers,
        expect=Expect(restarts={"router-inference-0": 1, "router-inference-1": 1}),
    ),
    Case(
        name="two-monitors",
        done=f"a second load-monitor beside the first for {TOGETHER_S:g} s",
        ends="the second is stopped",
        fault=_second_monitor,
        expect=Expect(on_time_share=0.99),
    ),
    Case(
        name="two-trainers",
        done=f"a second trainer with the same settings for {TOGETHER_S:g} s",
        ends="the second is stopped",
        fault=_second_trainer,
        expect=Expect(on_time_share=0.99),
    ),
    Case(
        name="overload",
        done=f"three times what the devices carry for {OVERLOAD_S:g} s",
        ends="the load goes back",
        fault=_overload,
        expect=Expect(
            reasons=BUSY | {"TRANSPORT_DEADLINE_EXCEEDED"},
            on_time_share=0.2,
            recovery_s=10.0,
        ),
        start=SLOW,
        rate_rps=CALM_RPS,
        deadline_s=6.0,
        limit_s=120.0,
    ),
]
