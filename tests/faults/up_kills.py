"""Kills of `tiercel up` itself: `python -m tests.faults.up_kills --times 50`.

Starts a mesh with its doors and kills the command by SIGKILL, which tells nothing to the rest: the
first and the last time once the mesh has answered, in between at random moments from its start to a
little after it serves. All meshes have the same folder. Prints a line per kill; fails if a process
or its shared memory outlives its mesh, or if the last mesh does not answer.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from services.local.launch import tied_command
from services.local.manifest import FILE_NAME, read_manifest
from tests.e2e.mesh import NAME, START_LIMIT_S, STOP_LIMIT_S, run_up, serves
from tests.faults.mesh import has_envoy
from tests.waiting import LIMIT_S, until_sync
from tiercel import Client

BEYOND = 1.2
"""The last moment of a kill, as a multiple of the time until the first mesh had answered."""


class Kill(NamedTuple):
    """One kill.

    Attributes:
        after_s: When it came, seconds from the start of the command.
        below: How many processes ran below the command.
        is_serving: Whether the mesh served.
        gone_s: How long the last of them lived on, seconds.
        left: Processes that did not end (they were killed at last), and Triton's shared memory.
    """

    after_s: float
    below: int
    is_serving: bool
    gone_s: float
    left: list[str]


def kills(times: int, folder: Path, *arguments: str, seed: int, **how: Any) -> Iterator[Kill]:
    """Kills so many meshes, one after the other, and yields each kill.

    Args:
        times: How many.
        folder: State of each mesh; the next one finds what the last one left.
        *arguments: Of `tiercel up`.
        seed: Of the random moments.
        **how: What `run_up` takes.
    """
    rng = random.Random(seed)
    latest_s = 0.0
    for number in range(times):
        after_s = rng.uniform(0.0, latest_s) if 0 < number < times - 1 else None
        kill = _kill(folder, after_s, *arguments, **how)
        latest_s = latest_s or BEYOND * kill.after_s
        yield kill


def _kill(folder: Path, after_s: float | None, *arguments: str, **how: Any) -> Kill:
    """Kills a mesh after some time; None: once it has answered."""
    began_s = time.monotonic()
    process, log = run_up(folder, *arguments, **how)
    below: list[psutil.Process] = []
    try:
        if after_s is None:
            until_sync(
                lambda: serves(log) or process.poll() is not None, "it serves", START_LIMIT_S
            )
        else:
            time.sleep(after_s)
        assert process.poll() is None, log.read_text()
        if after_s is None:
            _ask(folder)
        # Stopped it starts nothing that would not be among these.
        process.send_signal(signal.SIGSTOP)
        below = psutil.Process(process.pid).children(recursive=True)
        is_serving = serves(log)
    finally:
        process.kill()
        process.wait()
        killed_s = time.monotonic()
        with contextlib.suppress(AssertionError):
            until_sync(lambda: not _left(below, folder), "the mesh is gone", STOP_LIMIT_S)
        gone_s = time.monotonic() - killed_s
        left = _left(below, folder)
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    told = [_told(each) for each in left] + _memory(below)
    return Kill(killed_s - began_s, len(below), is_serving, gone_s, told)


def _ask(folder: Path) -> None:
    """Asks the mesh for an answer."""
    with Client(read_manifest(folder / "run" / NAME / FILE_NAME).routers[0]) as client:
        assert client.generate("hello", task="piqa", deadline_s=LIMIT_S).text


def _left(below: list[psutil.Process], folder: Path) -> list[psutil.Process]:
    """Returns what still runs: of these, else of whatever was started with this state.

    One that has ended does not run, also where nobody waits for it, as in a container.
    """
    found = [each for each in below if each.is_running() and _state_of(each) is not None]
    return found or [each for each in psutil.process_iter() if _state_of(each) == str(folder)]


def _memory(processes: list[psutil.Process]) -> list[str]:
    """Returns the shared memory of Tritons that some of these had started, and did not remove."""
    names = (f"tiercel_{each.pid}_*" for each in processes)
    return [path.name for name in names for path in Path("/dev/shm").glob(name)]


def _state_of(process: psutil.Process) -> str | None:
    """Returns the state folder that a process was started with; None once it has ended."""
    with contextlib.suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return process.environ().get("TIERCEL_STATE", "")
    return None


def _told(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.name()} {process.pid}"
    return str(process.pid)


def main() -> int:
    """Kills and tells; returns 1 if something outlived its mesh."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.up_kills", description=__doc__)
    parser.add_argument("--times", type=int, default=50, help="how many kills")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments")
    parser.add_argument("--folder", type=Path, default=Path("build/up-kills"), help="for its files")
    given = parser.parse_args()
    if given.times < 1:
        parser.error("--times: must be at least 1")
    began_s = time.monotonic()
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    doors = ("--openai", "--envoy") if has_envoy() else ("--openai",)
    # A mesh ends with this command, however that ends.
    program = tied_command([sys.executable, "-m", "services.cli"])
    made: list[Kill] = []
    for kill in kills(given.times, folder, *doors, seed=given.seed, program=program):
        made.append(kill)
        state = "serving" if kill.is_serving else "starting"
        left = f"; left: {', '.join(kill.left)}" if kill.left else ""
        print(
            f"{len(made)}: killed after {kill.after_s:.1f} s, {state}, {kill.below} processes below"
            f" it; they were gone after {kill.gone_s:.1f} s{left}",
            flush=True,
        )
    gone_s = [kill.gone_s for kill in made]
    bad = sum(bool(kill.left) for kill in made)
    serving = sum(kill.is_serving for kill in made)
    print(
        f"{len(made)} kills in {(time.monotonic() - began_s) / 60:.1f} min, {serving} of them while"
        f" it served: something was left after {bad}; the rest was gone after"
        f" {statistics.median(gone_s):.1f} s (median), {max(gone_s):.1f} s (worst)"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
