"""Shares the cases out among processes, each with meshes, ports and files of its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence

from services.local.launch import tied_command
from tests.faults.case import Case, Start

END_WAIT_S = 60.0


def shares(
    cases: Sequence[Case], seconds: Sequence[float], count: int, *, start_s: float = 0.0
) -> list[list[Case]]:
    """Shares cases out so that all shares end about together; the order stays within each.

    A case goes where it ends soonest, so those of one mesh stay together while that costs less
    than a second start.

    Args:
        cases: What is to be run.
        seconds: How long all runs of each take, about.
        count: Most shares; none is empty.
        start_s: What the start of a mesh takes, about.
    """
    sums_s = [0.0] * min(count, len(cases))
    starts: list[list[Start]] = [[] for _ in sums_s]
    owner: dict[str, int] = {}
    for case, each_s in sorted(zip(cases, seconds, strict=True), key=lambda pair: -pair[1]):

        def ends_s(k: int, case: Case = case) -> float:
            return sums_s[k] + start_s * (case.start not in starts[k])

        owner[case.name] = soonest = min(range(len(sums_s)), key=ends_s)
        sums_s[soonest] = ends_s(soonest) + each_s
        starts[soonest].append(case.start)
    return [[case for case in cases if owner[case.name] == k] for k in range(len(sums_s))]


async def run_jobs(split: Sequence[Sequence[Case]], given: argparse.Namespace) -> int:
    """Runs each share in a process; returns 0 if all ended as expected. Cancelling ends them."""
    processes: list[asyncio.subprocess.Process] = []
    try:
        for number, share in enumerate(split):
            command = [sys.executable, "-m", "tests.faults", "--jobs", "1"]
            command += ["--folder", str(given.folder / str(number))]
            command += ["--times", str(given.times), "--limit-s", str(given.limit_s)]
            command += [part for case in share for part in ("--case", case.name)]
            command += ["--record"] if given.record else []
            processes.append(
                await asyncio.create_subprocess_exec(*tied_command(command), start_new_session=True)
            )
        codes = await asyncio.gather(*(process.wait() for process in processes))
        return 1 if any(codes) else 0  # that of a process that was killed is below zero
    finally:
        left = [process for process in processes if process.returncode is None]
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_WAIT_S):
                await asyncio.gather(*(process.wait() for process in left))
