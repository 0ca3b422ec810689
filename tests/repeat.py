"""The whole suite again and again, some runs beside a busy core (`make test-repeat`).

Each run leaves its output and its JUnit file in build/test-repeat and prints one line: how long it
took, how many tests passed, were skipped and failed, and the names of those that failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

_FOLDER = Path("build/test-repeat")
# Ends by itself when the program that started it is gone.
_BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"


@contextlib.contextmanager
def busy_core(*, wanted: bool) -> Iterator[None]:
    """Keeps one core busy for as long as the block runs."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", _BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def run_suite(stem: Path, limit_s: float, arguments: list[str]) -> bool:
    """Runs pytest once, at most so long; returns whether it ended by itself."""
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={stem}.xml", *arguments]
    with stem.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                # As Ctrl-C does, so that fixtures stop their servers.
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(60.0)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    return True


def summary(report: Path) -> tuple[int, int, list[str]]:
    """Returns how many tests of a JUnit file passed and were skipped, and the names of the rest."""
    if not report.is_file():
        return 0, 0, ["no report: see the log"]
    passed, skipped, failed = 0, 0, []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, skipped, failed


def main() -> int:
    """Runs the suite as often as asked; fails if any run did."""
    # A shell's background processes ignore it, and would hand that down to the suite.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument(
        "--busy", type=int, default=0, help="so many runs, the last, are beside one"
    )
    parser.add_argument("--lanes", type=int, default=2, help="processes of a run, as `make test`")
    parser.add_argument("--limit-s", type=float, default=2400.0, help="limit of one run, seconds")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    _FOLDER.mkdir(parents=True, exist_ok=True)
    failed_runs = 0
    for run in range(1, arguments.runs + 1):
        stem = _FOLDER / f"run-{run:02d}"
        stem.with_suffix(".xml").unlink(missing_ok=True)
        is_busy = run > arguments.runs - arguments.busy
        started_s = time.monotonic()
        with busy_core(wanted=is_busy):
            words = ["-n", str(arguments.lanes), *arguments.pytest]
            ended = run_suite(stem, arguments.limit_s, words)
        passed, skipped, failed = summary(stem.with_suffix(".xml"))
        failed += [] if ended else ["stopped at the limit"]
        failed_runs += bool(failed)
        print(
            f"run {run:2d} {'busy' if is_busy else 'calm'} {time.monotonic() - started_s:5.0f} s: "
            f"{passed} passed, {skipped} skipped, {len(failed)} failed {' '.join(failed)}".rstrip(),
            flush=True,
        )
    print(f"{arguments.runs - failed_runs} of {arguments.runs} runs passed; logs in {_FOLDER}")
    return 1 if failed_runs else 0


if __name__ == "__main__":
    raise SystemExit(main())
