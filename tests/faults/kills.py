"""Random kills: `python -m tests.faults.kills --kills 100 --seed 1 --rate-rps 20`.

Kills trainer, Redis and routers of a mesh of real processes at random moments under a steady load,
and counts by id afterwards what became of every decision. `--simulated` does the same in one
process and in virtual time. Prints what it found; `--record` writes docs/results/kills.json and the
table of docs/reliability.md. Fails if anything acknowledged is lost, counts twice, or is lost and
told by nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
import numpy as np
import psutil
from redis.exceptions import RedisError

from services.common.channels import open_channel
from services.common.state import keys
from services.local.errors import CommandError
from services.local.run import run_owning_children
from tests.faults import kills_page
from tests.faults.case import Start
from tests.faults.counting import Count, Entry, Saved, count, key_of, read_saved
from tests.faults.experience import MOST_ENTRIES, newest_id
from tests.faults.load import settle
from tests.faults.mesh import GROUP, TASKS, FaultMesh, run_root
from tests.faults.simulated_kills import VICTIMS, simulate
from tiercel.common.v1 import experience_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as router_grpc
from trainer.learning.online.joining import DecisionKey
from trainer.learning.online.processes import ProcessKey

Read = TypeVar("Read")

SHORTEST_GAP_S, LONGEST_GAP_S = 1.0, 8.0
"""From one kill to the next, seconds."""
DEADLINE_S = 2.0
PATIENCE_S = 5.0
"""Of the trainer: for outcomes, for other routers, and for a router that is gone."""
WHOLE_LIMIT_S = 120.0
SETTLED_LIMIT_S = 240.0
_START = Start(
    sections={"trainer": {"patience_s": PATIENCE_S, "claim_idle_s": 5.0}}, has_additions=False
)


def main() -> int:
    """Kills, counts and tells; returns 1 if something happened that must not."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments")
    parser.add_argument("--rate-rps", type=float, default=20.0, help="requests per second in all")
    parser.add_argument("--limit-s", type=float, default=1_740.0, help="kills none after this")
    parser.add_argument("--simulated", action="store_true", help="in one process, virtual time")
    parser.add_argument("--folder", type=Path, default=Path("build/kills"), help="for its files")
    parser.add_argument("--record", action="store_true", help="write the results and the page")
    given = parser.parse_args()
    if given.simulated:
        logging.disable(logging.CRITICAL)
        with tempfile.TemporaryDirectory() as folder:
            simulated = simulate(
                given.kills, seed=given.seed, rate_rps=given.rate_rps / 2, folder=Path(folder)
            )
        found = Found(simulated.kills, simulated.count.made, simulated.count)
        return _tell(found, given, is_good=not simulated.unsaved_at_kills)
    run_root(given.folder.absolute())
    return run_owning_children(_run(given), _say)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a run showed.

    Attributes:
        kills: how often each was killed.
        answered: requests that were answered.
        count: what became of the decisions.
        missing: what the mesh lacked when it had time enough to be whole again; empty if nothing.
    """

    kills: dict[str, int]
    answered: int
    count: Count
    missing: str = ""


def _tell(found: Found, given: argparse.Namespace, *, is_good: bool = True) -> int:
    is_good &= found.count.is_good
    kills = ", ".join(f"{name} {number}" for name, number in sorted(found.kills.items()))
    _say(f"killed: {kills}; {found.answered} requests answered")
    for name, value in dataclasses.asdict(found.count).items():
        if name != "examples" or value:
            _say(f"  {name:<16} {value}")
    lacking = _lacking(found, given.kills)
    is_good &= not lacking
    _say("as it must be" if is_good else f"NOT as it must be{lacking}")
    if given.record:
        kills_page.keep(dataclasses.asdict(found), given)
    return 0 if is_good else 1


def _lacking(found: Found, kill_count: int) -> str:
    """Returns what a run lacks to show anything; empty if nothing."""
    made = sum(found.kills.values())
    if made < kill_count:
        return f": {made} of {kill_count} kills, then the time was up"
    if found.missing:
        return f": not whole again: {found.missing}"
    if not found.count.settled:
        return ": the trainer took in nothing"
    return "" if found.answered else ": no request was answered"


async def _run(given: argparse.Namespace) -> int:
    try:
        async with FaultMesh(_START, say=lambda text: None) as mesh:
            found = await _kill(mesh, given)
    except CommandError as error:
        _say(f"the mesh did not start: {error}")
        return 1
    return _tell(found, given)


async def _kill(mesh: FaultMesh, given: argparse.Namespace) -> Found:
    rng = np.random.default_rng(given.seed)
    if not await settle(lambda: _is_whole(mesh), WHOLE_LIMIT_S):
        raise CommandError(f"not whole: {await mesh.what_is_missing()}")
    lives = _Lives(mesh)
    await lives.look()
    load = _Load(mesh, given.rate_rps, rng)
    killed = Counter[str]()
    end_s = time.monotonic() + given.limit_s
    looking = asyncio.create_task(lives.follow())
    sending = asyncio.create_task(load.run())
    try:
        while killed.total() < given.kills and time.monotonic() < end_s:
            await asyncio.sleep(rng.uniform(SHORTEST_GAP_S, LONGEST_GAP_S))
            victim = str(rng.choice(VICTIMS))
            name = str(rng.choice(mesh.router_names)) if victim == "router" else victim
            with contextlib.suppress(psutil.NoSuchProcess, KeyError):  # not started again yet
                mesh.kill(name)
                killed[victim] += 1
                _say(f"{killed.total():4} {name} killed")
        is_whole = await settle(lambda: _is_whole(mesh), WHOLE_LIMIT_S)
        missing = "" if is_whole else await mesh.what_is_missing()
        await asyncio.sleep(2.0 * PATIENCE_S)  # load goes on: what is gone is noticed
    finally:
        looking.cancel()
        load.is_over = True
        await sending
    saved = await _settled(mesh)
    entries, refused = await _patiently(_entries, mesh), await _patiently(_refused, mesh)
    made = _made(load.answered, lives, entries, saved)
    counted = count(made, entries, saved, refused)
    return Found(dict(killed), len(load.answered), counted, missing)


async def _is_whole(mesh: FaultMesh) -> bool:
    return not await mesh.what_is_missing()


class _Lives:
    """The processes of each router, and since when each has served."""

    def __init__(self, mesh: FaultMesh) -> None:
        self._mesh = mesh
        self._lives: dict[str, list[tuple[float, ProcessKey]]] = defaultdict(list)

    async def follow(self) -> None:
        """Looks for ever."""
        while True:
            await self.look()
            await asyncio.sleep(0.05)

    async def look(self) -> None:
        """Notes new processes."""
        for name in self._mesh.router_names:
            with contextlib.suppress(grpc.aio.AioRpcError):
                status = await self._mesh.router_status(name)
                process = (status.router_id, status.epoch)
                lives = self._lives[name]
                if not lives or lives[-1][1] != process:
                    lives.append((time.monotonic(), process))

    def at(self, name: str, answer_s: float) -> ProcessKey:
        """Returns the process of a router that answered at a moment."""
        # It may have answered before it was seen: then the epoch tells, its start.
        lives = self._lives[name]
        offset_s = time.time() - time.monotonic()
        begun = [each for each in lives if each[1][1] / 1e9 - offset_s <= answer_s]
        return (begun or lives)[-1 if begun else 0][1]


class _Load:
    """Requests with ids of their own; those that were answered are kept."""

    def __init__(self, mesh: FaultMesh, rate_rps: float, rng: np.random.Generator) -> None:
        self._mesh = mesh
        self._rate_rps = rate_rps
        self._rng = rng
        self._stubs: dict[str, Any] = {}
        self.answered: dict[str, tuple[str, float]] = {}
        """By id: the router, and when it had answered, monotonic seconds."""
        self.is_over = False

    async def run(self) -> None:
        """Sends until it is over, and waits for what was sent."""
        names = self._mesh.router_names
        async with contextlib.AsyncExitStack() as stack:
            for name, address in zip(names, self._mesh.router_addresses, strict=True):
                channel = open_channel(address)
                stack.push_async_callback(channel.close)
                self._stubs[name] = router_grpc.RouterInferenceServiceStub(channel)
            running: set[asyncio.Task[None]] = set()
            number = 0
            while not self.is_over:
                await asyncio.sleep(self._rng.exponential(1.0 / self._rate_rps))
                number += 1
                task = asyncio.create_task(self._ask(str(self._rng.choice(names)), number))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.gather(*running)

    async def _ask(self, name: str, number: int) -> None:
        spec = router_pb.GenerationSpec(
            prompt="x" * 64, task=TASKS[number % len(TASKS)], request_id=f"kill-{number}"
        )
        spec.deadline.FromMilliseconds(round(DEADLINE_S * 1e3))
        request = router_pb.GenerateRequest(spec=spec)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self._stubs[name].Generate(request, timeout=2.0 * DEADLINE_S)
            self.answered[spec.request_id] = name, time.monotonic()


async def _settled(mesh: FaultMesh) -> Saved:
    """Waits until the trainer has taken in all it can, and returns what it saved."""
    path = mesh.folder / "trainer" / "online.state"
    since_s = time.monotonic()
    last: tuple[int, ...] = ()
    end_s = since_s + SETTLED_LIMIT_S
    while time.monotonic() < end_s and time.monotonic() - since_s < 4.0 * PATIENCE_S:
        group = await mesh.consumer_group()
        saved = await asyncio.to_thread(read_saved, path)
        now = (group["pending"], len(saved.times_s), saved.processes.cut_count) if group else ()
        newest = await _patiently(newest_id, mesh)
        is_behind = group is None or group["last-delivered-id"] != newest
        if now != last or is_behind:
            since_s, last = time.monotonic(), now
        await asyncio.sleep(1.0)
    return await asyncio.to_thread(read_saved, path)


async def _entries(mesh: FaultMesh) -> list[Entry]:
    """Reads the whole stream, acknowledgements last."""
    redis: Any = mesh.redis_client
    raw = await redis.xrange(keys.EXPERIENCE_STREAM, count=MOST_ENTRIES)
    group = await mesh.consumer_group()
    until = group["last-delivered-id"] if group else b"0-0"
    pending = group and await redis.xpending_range(
        keys.EXPERIENCE_STREAM, GROUP, "-", "+", MOST_ENTRIES
    )
    waiting = {each["message_id"] for each in pending or ()}
    return [
        Entry(
            experience_pb2.ExperienceEntry.FromString(fields[b"e"]),
            entry_id not in waiting and _number(entry_id) <= _number(until),
        )
        for entry_id, fields in raw
    ]


def _number(entry_id: bytes) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split(b"-")))


async def _refused(mesh: FaultMesh) -> set[DecisionKey]:
    """Returns the decisions that the trainer refused and kept aside."""
    redis: Any = mesh.redis_client
    found = set()
    for _, fields in await redis.xrange(keys.dead_letter("experience")):
        entry = experience_pb2.ExperienceEntry.FromString(fields[b"payload"])
        if entry.HasField("decision"):
            found.add(key_of(entry.decision))
    return found


async def _patiently(read: Callable[[FaultMesh], Awaitable[Read]], mesh: FaultMesh) -> Read:
    """Reads from Redis, again if a busy machine kept it from answering in time."""
    for _ in range(10):
        try:
            return await read(mesh)
        except RedisError:
            await asyncio.sleep(1.0)
    return await read(mesh)


def _made(
    answered: dict[str, tuple[str, float]], lives: _Lives, entries: list[Entry], saved: Saved
) -> set[DecisionKey]:
    """Returns the keys of all decisions known to have been made.

    One that was answered and is not in the stream has no number that anybody knows. It is given a
    number of its process that is missing, or one behind the last if none is.
    """
    decisions = [e.record.decision for e in entries if e.record.HasField("decision")]
    made = {key_of(each) for each in decisions}
    written = {each.request_id for each in decisions}
    lost = Counter(lives.at(*answered[each]) for each in answered.keys() - written)
    for process, number in lost.items():
        sequence = 0
        while number:
            sequence += 1
            key = (*process, sequence)
            if key not in made and key not in saved.settled:
                made.add(key)
                number -= 1
    return made


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
