"""Tiers of one device take turns: strictly in order, and past a tier that died."""

from __future__ import annotations

import itertools
import os
import pathlib
import subprocess
import sys

import pytest

import device_turn

FOLDER = str(pathlib.Path(device_turn.__file__).parent)
WORKER = """
import pathlib, sys, time
sys.path.insert(0, {folder!r})
from device_turn import DeviceTurn
turn = DeviceTurn(pathlib.Path({path!r}))
print("ready", flush=True)
sys.stdin.readline()
for _ in range({count}):
    with turn:
        start = time.monotonic()
        while time.monotonic() - start < 0.002:
            pass
        print({name!r}, start, time.monotonic(), flush=True)
{tail}
"""


def start(
    path: pathlib.Path, name: str, count: int, tail: str = "turn.close()"
) -> subprocess.Popen[str]:
    """A tier as a process; it begins when its standard input gets a line."""
    code = WORKER.format(folder=FOLDER, path=str(path), name=name, count=count, tail=tail)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_alternate_and_never_overlap(tmp_path: pathlib.Path) -> None:
    """While all have work, each gets its share of turns, and no two turns meet."""
    names = ("a", "b", "c")
    processes = [start(tmp_path / "device", name, 40) for name in names]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    lines = [
        line for process in processes for line in process.communicate(timeout=120)[0].split("\n")
    ]
    turns = sorted((float(s), float(e), n) for n, s, e in (line.split() for line in lines if line))
    assert len(turns) == 120
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(turns))
    # While all three have work, none is kept waiting: a process that the system itself left
    # unscheduled may miss a round, but nobody takes the device several times while others wait.
    first_end = min(max(s for s, _, n in turns if n == name) for name in names)
    last_start = max(min(s for s, _, n in turns if n == name) for name in names)
    busy = [n for s, _, n in turns if last_start <= s <= first_end]
    assert len(busy) >= 12
    assert all(busy.count(name) >= 0.2 * len(busy) for name in names)
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_dies_does_not_block_the_others(tmp_path: pathlib.Path) -> None:
    """The device goes on when the process that holds it is killed."""
    tail = "turn.__enter__(); print('held', flush=True); time.sleep(600)"
    holder = start(tmp_path / "device", "a", 0, tail)
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "held\n"
    other = start(tmp_path / "device", "b", 1)
    assert other.stdin is not None
    other.stdin.write("\n")
    other.stdin.flush()
    holder.kill()
    holder.wait()
    out, _ = other.communicate(timeout=120)
    assert out.startswith("b ")
    holder.stdin.close()
    holder.stdout.close()


def test_places_are_bounded_and_freed(tmp_path: pathlib.Path) -> None:
    """One place more than there are is an error; a closed one is free again."""
    turns = [device_turn.DeviceTurn(tmp_path / "device") for _ in range(device_turn.SLOT_COUNT)]
    with pytest.raises(device_turn.DeviceTurnError, match="places are taken"):
        device_turn.DeviceTurn(tmp_path / "device")
    turns.pop().close()
    again = device_turn.DeviceTurn(tmp_path / "device")
    with again:
        pass
    for turn in [*turns, again]:
        turn.close()
    assert list(tmp_path.iterdir()) == []


def test_files_of_killed_servers_are_removed(tmp_path: pathlib.Path) -> None:
    """What a server left that could not clean up goes when the next one starts."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    for name in (f"tiercel-device-{ended.pid}", f"tiercel-device-{ended.pid}.0"):
        (tmp_path / name).touch()
    kept = tmp_path / f"tiercel-device-{os.getpid()}"
    kept.touch()
    path = device_turn.device_of_server(tmp_path, os.getpid())
    assert path == kept
    assert list(tmp_path.iterdir()) == [kept]
