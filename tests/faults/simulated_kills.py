"""Kills of trainer, Redis and routers in one process and in virtual time, counted by id.

The parts are the real ones: the routers' writer of experience, the trainer's consumer, its turn,
its learning run and what it saves to a disk. Redis is a stream in memory that outlives its kills,
as one with an append-only file does: while it is away calls fail, and one that is under way when it
is killed was carried out, in part or not at all.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry

from router.features import FEATURE_COUNT, FEATURES, SCHEMA
from services.common.log import get_logger
from services.common.state.errors import StateUnavailableError
from services.common.state.experience_stream import MemoryExperienceStream
from services.common.state.policy_store import MemoryPolicyStore
from services.common.state.shared_state import MemorySharedState
from services.common.times import timestamp_of
from services.router_inference.records.convert import OutcomeEntry, RecordBuilder
from services.router_inference.records.experience import ExperienceWriter
from services.router_inference.records.metrics import RouterMetrics
from services.trainer.jobs import OnlineJob, OnlineSpec
from services.trainer.mesh_view import MeshView
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import Mode
from services.trainer.online import OnlineTraining
from services.trainer.registry import PolicyRegistry
from services.trainer.runs import Run
from services.trainer.settings import TrainerSettings
from services.trainer.turn import Turn
from services.trainer.worker import WorkerDiedError
from tests.fakes.virtual_time import LoopClock, run_virtual
from tests.faults.counting import Count, Entry, acked_unsaved, count, read_saved
from tiercel.common.v1 import common_pb2, experience_pb2
from trainer.learning.online.joining import DecisionKey

VICTIMS = ("trainer", "redis", "router")
TASK = "t"
BUFFER_S = 3.0
"""Longest time a record waits in a router: shorter than the longest time Redis is away."""
_LONGEST_AWAY_S = 5.0
_LATENCY_S = 0.002
_DEADLINE_S = 0.5
_PATIENCE_S = 5.0
_GROUP = "trainer"
_CALM_S = 20.0
"""Load goes on so long after the last kill, and the trainer for three times as long after that."""


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What simulated kills showed.

    Attributes:
        kills: how often each was killed.
        count: what became of the decisions.
        unsaved_at_kills: decisions acknowledged and unsaved, over all kills of a trainer.
    """

    kills: dict[str, int]
    count: Count
    unsaved_at_kills: int


class _Decision(NamedTuple):
    """A decision as the writer keeps it."""

    sequence: int
    decide_ns: int


class _Builder(RecordBuilder):
    """Makes messages; decisions are all alike but for their number and time."""

    def __init__(self, router_id: str, epoch: int) -> None:
        super().__init__(router_id=router_id, epoch=epoch, explainer=None)  # type: ignore[arg-type]
        self._features = np.array([(f.low + f.high) / 2.0 for f in FEATURES], "<f4").tobytes()

    def payload(self, entry: Any, features: bytes = b"") -> bytes:
        """Returns the serialized entry."""
        if not isinstance(entry, _Decision):
            return super().payload(entry, features)
        record = experience_pb2.DecisionRecord(
            router_id=self._router_id,
            epoch=self._epoch,
            sequence=entry.sequence,
            request_id=f"{self._router_id}-{self._epoch}-{entry.sequence}",
            decide_time=timestamp_of(entry.decide_ns),
            task=TASK,
            feature_schema=SCHEMA,
            candidates=[common_pb2.Candidate(tier="small", endpoint="e0")],
            features=self._features,
            feature_count=FEATURE_COUNT,
            behavior_probability=1.0,
            policy="p",
            policy_version="1",
        )
        return experience_pb2.ExperienceEntry(decision=record).SerializeToString()


class _Redis:
    """What outlives every kill, and whether it can be reached."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.stream = MemoryExperienceStream(LoopClock())
        self.shared = MemorySharedState(LoopClock())
        self.rng = rng
        self.is_down = False
        self.death_count = 0

    def entries(self) -> list[Entry]:
        """Returns all that was ever written."""
        pending = self.stream._pending.get(_GROUP, {})
        delivered = self.stream._next.get(_GROUP, 0)
        return [
            Entry(
                experience_pb2.ExperienceEntry.FromString(entry.payload),
                number <= delivered and entry.entry_id not in pending,
            )
            for number, entry in self.stream._entries
        ]


class _Client:
    """A store of Redis as one process sees it."""

    def __init__(self, redis: _Redis, target: Any) -> None:
        self._redis = redis
        self._target = target
        self.is_dead = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any) -> Any:
            redis = self._redis
            deaths = redis.death_count
            await asyncio.sleep(redis.rng.exponential(_LATENCY_S))  # on its way there
            if self.is_dead or redis.is_down or redis.death_count != deaths:
                if name == "append" and not self.is_dead and redis.death_count != deaths:
                    await self._target.append(self._begun(*arguments))
                raise StateUnavailableError("away")
            found = await getattr(self._target, name)(*arguments)
            await asyncio.sleep(redis.rng.exponential(_LATENCY_S))  # on its way back
            if self.is_dead or redis.death_count != deaths:
                raise StateUnavailableError("the answer was lost")
            return found

        return call

    def _begun(self, payloads: Sequence[bytes]) -> Sequence[bytes]:
        """Returns the part of a batch that was written before Redis died."""
        return payloads[: int(self._redis.rng.integers(len(payloads) + 1))]


class _Router:
    """One life of a router process."""

    def __init__(self, world: _World, name: str) -> None:
        self._world = world
        self._name, self._epoch = name, LoopClock().wall_ns()
        self._client = _Client(world.redis, world.redis.stream)
        self._writer = ExperienceWriter(
            builder=_Builder(name, self._epoch),
            stream=self._client,
            metrics=RouterMetrics(CollectorRegistry()),
            clock=LoopClock(),
            log=get_logger("kills"),
            buffer_count=20_000,
            buffer_s=BUFFER_S,
            batch_count=20,
            interval_s=0.1,
            retry_s=1.0,
        )
        self._tasks = [asyncio.ensure_future(each) for each in (self._serve(), self._writer.run())]
        self._answers: set[asyncio.Task[None]] = set()

    async def kill(self) -> None:
        """Ends it at whatever it does; what it has not written is gone."""
        self._client.is_dead = True
        await _end([*self._tasks, *self._answers])

    async def stop(self) -> None:
        """Ends it in order."""
        await _end(self._tasks[:1])
        await asyncio.gather(*self._answers)
        await _end(self._tasks)
        await self._writer.flush(2.0)

    async def _serve(self) -> None:
        world, sequence = self._world, 0
        while True:
            await asyncio.sleep(world.rng.exponential(1.0 / world.rate_rps))
            sequence += 1
            world.made[self._name, self._epoch, sequence] = None
            self._writer.add(_Decision(sequence, world.next_ns()))  # type: ignore[arg-type]
            answer = asyncio.ensure_future(self._answer(sequence))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)

    async def _answer(self, sequence: int) -> None:
        latency_s = self._world.rng.uniform(0.05, _DEADLINE_S)
        await asyncio.sleep(latency_s)
        self._writer.add(
            OutcomeEntry(
                router_id=self._name,
                epoch=self._epoch,
                sequence=sequence,
                request_id=f"{self._name}-{self._epoch}-{sequence}",
                end_ns=LoopClock().wall_ns(),
                status=common_pb2.OUTCOME_STATUS_ON_TIME,
                latency_s=latency_s,
                first_token_s=None,
                output_tokens=1,
                served_by=("small", "e0"),
                quality=1.0,
                reward=1.0,
                delivered_reward=1.0,
            )
        )


class _Learner:
    """A worker process: it dies with its trainer."""

    def __init__(self, spec: OnlineSpec) -> None:
        self._job = OnlineJob(spec)
        self.is_dead = False

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """Runs a method; what it saves is saved even if nobody is left to hear of it."""
        await asyncio.sleep(_LATENCY_S)
        if self.is_dead:
            raise WorkerDiedError("killed")
        found = getattr(self._job, method)(*arguments)
        await asyncio.sleep(_LATENCY_S)
        return found

    async def close(self) -> None:
        """Does nothing."""


class _Trainer:
    """One life of a trainer process."""

    def __init__(self, world: _World) -> None:
        self._learners: list[_Learner] = []
        log, clock = get_logger("kills"), LoopClock()
        metrics = TrainerMetrics(CollectorRegistry())
        self._clients = [_Client(world.redis, t) for t in (world.redis.stream, world.redis.shared)]
        stream, shared = self._clients
        training = OnlineTraining(
            settings=TrainerSettings(
                data_dir=world.folder,
                save_interval_s=2.0,
                patience_s=_PATIENCE_S,
                min_transitions=10_000_000,
                consumer_group=_GROUP,
            ),
            deadline_s=_DEADLINE_S,
            stream=stream,
            turn=Turn(
                store=shared,
                owner=f"trainer-{clock.wall_ns()}",
                clock=clock,
                log=log,
            ),
            mesh=MeshView(channel=None, candidates=(), clock=clock, log=log),
            tasks=frozenset({TASK}),
            registry=PolicyRegistry(
                store=MemoryPolicyStore(),
                built_in=("price",),
                clock=clock,
                log=log,
                metrics=metrics,
            ),
            gate=None,  # type: ignore[arg-type]
            clock=clock,
            log=log,
            metrics=metrics,
            fallback_initial=None,
            start_learner=self._start,
        )
        run = Run(training_id="t", mode=Mode.ONLINE, step_count=0, seed=1, promote=False)
        self._task = asyncio.ensure_future(training(run))

    def _start(self, spec: OnlineSpec) -> _Learner:
        self._learners.append(_Learner(spec))
        return self._learners[-1]

    async def kill(self) -> None:
        """Ends it at whatever it does."""
        for client in self._clients:
            client.is_dead = True
        for learner in self._learners:
            learner.is_dead = True
        await _end([self._task])


class _World:
    """Everything, and the load on it."""

    def __init__(self, rng: np.random.Generator, folder: Path, rate_rps: float) -> None:
        self.rng = rng
        self.folder = folder
        self.rate_rps = rate_rps
        self.made: dict[DecisionKey, None] = {}
        self.redis = _Redis(rng)
        self.routers = {name: _Router(self, name) for name in ("r0", "r1")}
        self.trainer = _Trainer(self)
        self.unsaved_at_kills = 0
        self._last_ns = 0
        self._starts: set[asyncio.Task[None]] = set()

    def next_ns(self) -> int:
        """Returns the wall time; no two decisions have the same microsecond."""
        self._last_ns = max(self._last_ns + 2_000, LoopClock().wall_ns())
        return self._last_ns

    async def kill(self, victim: str) -> None:
        """Kills one, and has it started again after a while."""
        if victim == "redis":
            self.redis.is_down = True
            self.redis.death_count += 1
            self._later(self._start_redis, self.rng.uniform(0.1, _LONGEST_AWAY_S))
        elif victim == "trainer":
            await self.trainer.kill()
            settled = read_saved(self.folder / "online.state").settled
            self.unsaved_at_kills += len(acked_unsaved(self.redis.entries(), settled))
            self.trainer = _Trainer(self)
        else:
            name = str(self.rng.choice(list(self.routers)))
            await self.routers[name].kill()
            self.routers[name] = _Router(self, name)

    async def calm_down(self) -> None:
        """Ends the load in order, and the trainer some time later, by a kill."""
        await asyncio.gather(*self._starts)
        await asyncio.sleep(_CALM_S)
        for router in self.routers.values():
            await router.stop()
        await asyncio.sleep(3.0 * _CALM_S)
        await self.trainer.kill()

    def _start_redis(self) -> None:
        self.redis.is_down = False

    def _later(self, start: Callable[[], None], delay_s: float) -> None:
        async def wait() -> None:
            await asyncio.sleep(delay_s)
            start()

        task = asyncio.ensure_future(wait())
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, StateUnavailableError, WorkerDiedError):
            await task


def simulate(kills: int, *, seed: int, rate_rps: float, folder: Path) -> Simulated:
    """Kills at random moments, and counts by id afterwards.

    Args:
        kills: how many.
        seed: of everything that is drawn.
        rate_rps: requests per second at each of two routers.
        folder: for what the trainer saves.
    """

    async def main() -> Simulated:
        rng = np.random.default_rng(seed)
        world = _World(rng, folder, rate_rps)
        killed = Counter[str]()
        for _ in range(kills):
            await asyncio.sleep(rng.uniform(0.1, 6.0))
            victim = str(rng.choice(VICTIMS))
            if victim == "redis" and world.redis.is_down:
                victim = "trainer"
            killed[victim] += 1
            await world.kill(victim)
        await world.calm_down()
        saved = read_saved(folder / "online.state")
        found = count(world.made, world.redis.entries(), saved)
        return Simulated(dict(killed), found, world.unsaved_at_kills)

    return run_virtual(main())
