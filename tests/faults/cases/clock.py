"""Wall clocks that are set while the mesh runs: an hour ahead, then an hour back, then right."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable

from tests.faults.case import Case, Expect
from tests.faults.mesh import FaultMesh
from tests.faults.surroundings import AROUND, MONITOR, REDIS, ROUTER_NAMES, START, TRAINER

HOUR_S = 3600.0
STEP_S = 0.8


def _problem() -> str:
    return "" if shutil.which("cc") or shutil.which("gcc") else "no C compiler is installed"


def _step(*names: str) -> Callable[[FaultMesh], Awaitable[None]]:
    def set_clocks(mesh: FaultMesh, shift_s: float) -> None:
        assert AROUND.clocks is not None
        for name in names:
            for process in mesh.family(name):
                AROUND.clocks.step(process.pid, shift_s)

    async def fault(mesh: FaultMesh) -> None:
        try:
            for shift_s in (HOUR_S, -HOUR_S):
                set_clocks(mesh, shift_s)
                await asyncio.sleep(STEP_S)
        finally:
            set_clocks(mesh, 0.0)

    return fault


def _case(name: str, whose: str, *names: str, expect: Expect) -> Case:
    return Case(
        name=f"clock-{name}",
        done=f"{whose} set an hour ahead, then two hours back",
        ends=f"right again after {STEP_S:g} s each",
        fault=_step(*names),
        expect=expect,
        start=START,
        needs=_problem,
    )


# What comes to the trainer from a clock that was ahead of its own is kept as dead letters.
_UNHARMED = Expect(on_time_share=0.99, may_lose=frozenset({"experience"}))
CASES = [
    _case(
        "all",
        "the clocks of all services and Redis",
        REDIS,
        MONITOR,
        TRAINER,
        *ROUTER_NAMES,
        expect=_UNHARMED,
    ),
    _case("router", "the clock of one of two routers", ROUTER_NAMES[0], expect=_UNHARMED),
]
