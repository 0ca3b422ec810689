"""A disk that is full, or read-only, under everything the mesh writes."""

from __future__ import annotations

import asyncio
import os

from tests.faults.case import Case, Expect
from tests.faults.mesh import FaultMesh
from tests.faults.surroundings import AROUND, MONITOR, START

FAULT_S = 2.0


def _problem() -> str:
    return "" if os.geteuid() == 0 else "a disk of its own takes root"


async def _full(mesh: FaultMesh) -> None:
    assert AROUND.disk is not None
    await asyncio.to_thread(AROUND.disk.fill)
    try:
        mesh.kill(MONITOR)  # what is started again writes, too
        await asyncio.sleep(FAULT_S)
    finally:
        AROUND.disk.mend()


async def _read_only(mesh: FaultMesh) -> None:
    assert AROUND.disk is not None
    AROUND.disk.set_read_only()
    try:
        mesh.kill(MONITOR)
        await asyncio.sleep(FAULT_S)
    finally:
        AROUND.disk.mend()


CASES = [
    Case(
        name="disk-full",
        done="disk of the whole mesh full; the load-monitor is killed meanwhile",
        ends=f"room after {FAULT_S:g} s",
        fault=_full,
        expect=Expect(on_time_share=0.99, whole_s=25.0, restarts={MONITOR: 1}),
        start=START,
        needs=_problem,
    ),
    Case(
        name="disk-read-only",
        done="disk of the whole mesh read-only; the load-monitor is killed meanwhile",
        ends=f"writable after {FAULT_S:g} s",
        fault=_read_only,
        expect=Expect(on_time_share=0.99, whole_s=25.0, restarts={MONITOR: 1}),
        start=START,
        needs=_problem,
    ),
]
