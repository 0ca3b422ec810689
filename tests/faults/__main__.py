"""The fault matrix: `make faults`, or `python -m tests.faults --case NAME --times 1`.

Each case runs on a mesh of real processes on this machine, under load, several times. Prints one
line per run; `--record` writes docs/results/faults.json and docs/reliability.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import traceback
from pathlib import Path

from services.local.errors import CommandError
from services.local.run import run_owning_children
from tests.faults import jobs, packets, page
from tests.faults.case import Case
from tests.faults.catalog import CASES
from tests.faults.mesh import FaultMesh, run_root
from tests.faults.run import NotWholeError, Run, run_once

START_S = 20.0
"""What a start and a stop of a mesh take, about."""
GUESS_S = 10.0
"""What a run takes of which no record is known, about."""


def main() -> int:
    """Runs the cases asked for; fails if one does not end as expected."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--case", action="append", help="name of a case [default: all]")
    parser.add_argument("--times", type=int, default=5, help="runs of each case")
    parser.add_argument("--limit-s", type=float, default=1_740.0, help="starts no run after this")
    parser.add_argument("--jobs", type=int, default=2, help="processes that share the cases")
    parser.add_argument("--folder", type=Path, default=Path("build/faults"), help="for its files")
    parser.add_argument("--record", action="store_true", help="write the results and the page")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--list", action="store_true", help="only list the cases")
    given = parser.parse_args()
    unknown = set(given.case or ()) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; --list shows them")
    cases = [case for case in CASES if not given.case or case.name in given.case]
    if given.list:
        for case in cases:
            print(f"{case.name:<24} {case.done}; {case.ends}")
        return 0
    if given.page:
        page.write(CASES)
        return 0
    if given.jobs > 1 and len(cases) > 1:
        return run_owning_children(_run_all(cases, given), _say)
    packets.here()  # before there is any thread or socket
    run_root(given.folder.absolute())
    return run_owning_children(_Matrix(cases, given).run(), _say)


async def _run_all(cases: list[Case], given: argparse.Namespace) -> int:
    """Shares the cases out among processes and says when they have ended."""
    began_s = time.monotonic()
    seconds = [given.times * each_s for each_s in _seconds(cases)]
    split = jobs.shares(cases, seconds, given.jobs, start_s=START_S)
    about_s = max(_about_s(share, given.times) for share in split)
    _say(
        f"{len(cases)} cases, {given.times} times each, by {len(split)} processes: about"
        f" {about_s / 60:.0f} min, {given.limit_s / 60:.0f} min at most; Ctrl-C ends it"
    )
    code = await jobs.run_jobs(split, given)
    if given.record:
        page.write(CASES)
    took_s = time.monotonic() - began_s
    verdict = "not all as expected, see above" if code else "all as expected"
    _say(f"{took_s / 60:.1f} min in all: {verdict}")
    return code


def _seconds(cases: list[Case]) -> list[float]:
    """How long a run of each case took when it was last recorded."""
    known = page.read()
    return [known.get(case.name, {}).get("seconds", GUESS_S) for case in cases]


def _about_s(cases: list[Case], times: int) -> float:
    return len(_by_start(cases)) * START_S + times * sum(_seconds(cases))


class _Matrix:
    """Runs cases, one mesh after another."""

    def __init__(self, cases: list[Case], given: argparse.Namespace) -> None:
        self._cases = cases
        self._times: int = given.times
        self._limit_s: float = given.limit_s
        self._record: bool = given.record
        self._began_s = time.monotonic()
        self._log: Path = given.folder / "mesh.log"
        self._failed: set[str] = set()
        self._left: list[str] = []
        self._kept: set[str] = set()

    async def run(self) -> int:
        for case in self._cases:
            if reason := case.needs():
                _say(f"{case.name}: not run: {reason}")
                if self._record:
                    page.keep(case, [], 0.0, not_run=reason)
        self._cases = [case for case in self._cases if not case.needs()]
        groups = _by_start(self._cases)
        about_s = _about_s(self._cases, self._times)
        _say(
            f"{len(self._cases)} cases, {self._times} times each, on {len(groups)} meshes: about"
            f" {about_s / 60:.0f} min, {self._limit_s / 60:.0f} min at most; Ctrl-C ends it"
        )
        for group in groups:
            if self._is_time_up:
                self._left += [case.name for case in group]
                continue
            _say(f"starting a mesh for {', '.join(case.name for case in group)}")
            try:
                async with FaultMesh(group[0].start, say=self._tell) as mesh:
                    await self._run_group(group, mesh)
            except CommandError as error:
                _say(f"the mesh did not start: {error}")
                self._failed |= {case.name for case in group}
                for case in group if self._record else ():
                    if case.name not in self._kept:
                        page.keep(case, [], 0.0, broken=f"the mesh did not start: {error}")
        if self._record:
            page.write(CASES)
        took_s = time.monotonic() - self._began_s
        not_run = f"; not (fully) run: {', '.join(self._left)}" if self._left else ""
        bad = ", ".join(sorted(self._failed)) or "none"
        _say(f"{took_s / 60:.1f} min; not as expected: {bad}{not_run}")
        return 1 if self._failed or self._left else 0

    async def _run_group(self, group: list[Case], mesh: FaultMesh) -> None:
        """Runs each case once, then each again, so that what is killed has stood for a while.

        A process that ends soon after its start would be started again ever later.
        """
        made: dict[str, list[Run]] = {case.name: [] for case in group}
        taken_s = dict.fromkeys(made, 0.0)
        for number in range(1, self._times + 1):
            for case in group:
                runs = made[case.name]
                if self._is_time_up or len(runs) < number - 1:
                    continue
                began_s = time.monotonic()
                run = await self._run_case(case, mesh, number)
                taken_s[case.name] += time.monotonic() - began_s
                broken = run if isinstance(run, str) else ""
                if isinstance(run, Run):
                    runs.append(run)
                if broken or runs[-1].complaints:
                    self._failed.add(case.name)
                if self._record:
                    dicts = [dataclasses.asdict(each) for each in runs]
                    page.keep(case, dicts, taken_s[case.name] / number, broken=broken)
                    self._kept.add(case.name)
        self._left += [name for name, runs in made.items() if len(runs) < self._times]

    async def _run_case(self, case: Case, mesh: FaultMesh, number: int) -> Run | str:
        """Runs a case once; returns why if it broke off and nothing can be said of it."""
        self._tell(f"{case.name} {number}")
        try:
            run = await run_once(case, mesh, seed=number)
        except NotWholeError as error:
            _say(f"{case.name}: the mesh is not whole: {error}")
            return f"the mesh is not whole: {error}"
        except Exception as error:
            _say(f"{case.name}: {traceback.format_exc()}")
            return f"{error!r:.200}"
        _say(f"{self._now_s:6.0f} s {case.name} {number}: {_told(run)}")
        return run

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    @property
    def _is_time_up(self) -> bool:
        return self._now_s > self._limit_s

    def _tell(self, text: str) -> None:
        """Notes what supervisor and harness do."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"{self._now_s:8.1f} {text}\n")


def _by_start(cases: list[Case]) -> list[list[Case]]:
    """Groups the cases that share a mesh, in the order of their first ones."""
    groups: list[list[Case]] = []
    for case in cases:
        group = next((each for each in groups if each[0].start == case.start), None)
        if group is None:
            groups.append([case])
        else:
            group.append(case)
    return groups


def _told(run: Run) -> str:
    errors = ", ".join(f"{name} {count}" for name, count in sorted(run.errors.items())) or "none"
    recovery = "never" if run.recovery_s is None else f"{run.recovery_s:.1f} s"
    whole = "never" if run.whole_s is None else f"{run.whole_s:.1f} s"
    verdict = "; ".join(run.complaints) or "as expected"
    return (
        f"{run.sent} sent, {run.on_time} in time, {run.late} late, errors {errors};"
        f" as before after {recovery}, whole after {whole}: {verdict}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
