"""What the requests of each minute could have earned, for the mesh's books.

Reads the experience stream beside the learner and takes nothing out of it. A minute is looked at
once, shortly after its end, in a worker process of low priority; what it needs is bounded by the
requests of a minute. A minute that cannot be looked at gets no figure, and the reason.

Where to read on is an id of the stream, which Redis hands out by its own clock. Minutes are those
of this host's clock; one that is set makes minutes be left out, or looked at no more than once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any, Protocol

from services.common.clock import Clock
from services.common.log import Logger
from services.common.state import keys
from services.common.state.errors import StateUnavailableError
from services.common.state.experience_stream import FIRST_ID, ExperienceStream
from services.common.state.minute_store import MINUTE_S, MinuteStore
from services.trainer.convert_past import PastDecision, PastEnd, past_of, request_of
from services.trainer.jobs import MeshSpec
from services.trainer.mesh_view import MeshView
from services.trainer.metrics import TrainerMetrics
from services.trainer.worker import WorkerDiedError, WorkerError
from tiercel.load_monitor.v1 import minutes_pb2 as pb
from trainer.evaluation.past import LookBack, PastRequest
from trainer.learning.online.joining import DecisionKey

READ_S = 2.0
_READ_COUNT = 1_000
_AFTER_S = 15.0
"""How long after its end a minute is looked at: outcomes are written in batches."""
_OLDEST_S = 300.0
"""Decisions and ends that are older are of no use, nor are those that lie so far ahead."""
_LONGEST_PROBLEM = 200
_MOST_DECISIONS = 200_000


class Reckoner(Protocol):
    """Runs `SimulationJob.look_back`; `Worker` is one."""

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """Runs a method; raises WorkerDiedError or WorkerError."""


class HindsightKeeper:
    """Looks back at the requests of each minute.

    Args:
        stream: Where the records are.
        store: Where what is found goes.
        reckoner: Does the work.
        spec: The mesh of the settings; its devices give way to those that the monitor tells.
        mesh: What the monitor tells.
        tasks: Names of the mesh's tasks.
        most_requests: Most requests of a minute; 0 means that nothing is done.
        timeout_s: Longest time for one minute.
        clock: Clock.
        log: Log.
        metrics: Metrics.
        learned: Returns the mesh with the qualities that it has learned; none: it learns none.
    """

    def __init__(
        self,
        *,
        stream: ExperienceStream,
        store: MinuteStore,
        reckoner: Reckoner,
        spec: MeshSpec,
        mesh: MeshView,
        tasks: Collection[str],
        most_requests: int,
        timeout_s: float,
        clock: Clock,
        log: Logger,
        metrics: TrainerMetrics,
        learned: Callable[[MeshSpec], MeshSpec] | None = None,
    ) -> None:
        self._learned = learned
        self._stream = stream
        self._store = store
        self._reckoner = reckoner
        self._spec = spec
        self._mesh = mesh
        self._tasks = tasks
        self._most_requests = most_requests
        self._timeout_s = timeout_s
        self._clock = clock
        self._log = log
        self._metrics = metrics
        self._made: OrderedDict[DecisionKey, PastDecision] = OrderedDict()
        self._minutes: dict[int, list[PastRequest]] = {}
        self._after_id = ""
        # The one under way has begun without us.
        self._next_minute_s = _minute_of(self._now_s) + MINUTE_S

    async def run(self) -> None:
        """Looks back for ever."""
        while self._most_requests:
            await self.look()
            await self._clock.sleep(READ_S)

    async def look(self) -> None:
        """Reads what came, and looks at the minutes that are over."""
        try:
            while await self._read():
                pass
            self._follow_clock()
            while self._next_minute_s + MINUTE_S + _AFTER_S <= self._now_s:
                minute_s = self._next_minute_s
                self._next_minute_s += MINUTE_S
                requests = self._minutes.pop(minute_s, [])
                if requests and self._now_s - minute_s <= _OLDEST_S:
                    await self._look_at(minute_s, requests)
        except StateUnavailableError:
            return  # shown by the registry, which asks the same Redis
        self._forget()

    @property
    def _now_s(self) -> float:
        return self._clock.wall_ns() / 1e9

    def _follow_clock(self) -> None:
        """Goes on from the present minute if the clock was set."""
        now_minute_s = _minute_of(self._now_s)
        if self._next_minute_s > now_minute_s + MINUTE_S:
            self._next_minute_s = now_minute_s + MINUTE_S
        elif self._next_minute_s < self._now_s - _OLDEST_S:
            self._next_minute_s = _minute_of(self._now_s - _OLDEST_S)
        for minute_s in [each for each in self._minutes if not self._is_kept(each)]:
            del self._minutes[minute_s]

    async def _read(self) -> bool:
        """Takes in the next entries; returns whether there may be more."""
        if not self._after_id:
            self._after_id = await self._stream.newest_id()
        entries = await self._stream.behind(self._after_id, _READ_COUNT)
        if not entries and _is_behind(await self._stream.newest_id(), self._after_id):
            # Another stream, as of a Redis that was emptied: its ids may begin lower.
            self._after_id = FIRST_ID
        for entry in entries:
            self._after_id = entry.entry_id
            record = past_of(entry.payload, self._tasks)
            if isinstance(record, PastDecision):
                if self._is_believed(record):
                    self._made[record.key] = record
                if len(self._made) > _MOST_DECISIONS:
                    self._made.popitem(last=False)
            elif isinstance(record, PastEnd):
                self._take_end(record)
        # The trainer's calls come in between.
        await self._clock.sleep(0.0)
        return len(entries) == _READ_COUNT

    def _is_believed(self, made: PastDecision) -> bool:
        """Returns whether a decision can be one of the mesh's of these minutes."""
        if abs(made.decide_s - self._now_s) > _OLDEST_S:
            return False
        return not self._mesh.problem(made.key[:2], made.decide_s, ())

    def _take_end(self, end: PastEnd) -> None:
        # Of several outcomes of one decision the first counts.
        made = self._made.pop(end.key, None)
        minute_s = _minute_of(end.end_s)
        if made is None or not end.counts or not self._is_kept(minute_s):
            return
        requests = self._minutes.setdefault(minute_s, [])
        # One more than the limit tells that there were too many.
        if len(requests) <= self._most_requests:
            requests.append(request_of(made, end))

    def _is_kept(self, minute_s: int) -> bool:
        return self._next_minute_s <= minute_s <= _minute_of(self._now_s) + MINUTE_S

    def _forget(self) -> None:
        while self._made:
            key, oldest = next(iter(self._made.items()))
            if oldest.decide_s > self._now_s - _OLDEST_S:
                return
            del self._made[key]

    async def _look_at(self, minute_s: int, requests: list[PastRequest]) -> None:
        if await self._store.read(keys.MINUTE_HINDSIGHT, minute_s, minute_s + 1, 1):
            return  # another trainer was quicker
        devices = self._mesh.placement or self._spec.devices
        found = pb.Hindsight(device_count=len(devices))
        problem = self._problem(requests)
        if not problem:
            try:
                spec = self._spec if self._learned is None else self._learned(self._spec)
                looked: LookBack = await self._reckoner.call(
                    "look_back", spec, devices, requests, timeout_s=self._timeout_s
                )
                _write(found, looked, requests)
            except (WorkerDiedError, WorkerError) as error:
                self._log.error("hindsight_failed", reason=str(error))
                problem = f"the trainer failed at it: {error}"
        found.problem = problem[:_LONGEST_PROBLEM]
        self._metrics.hindsight_minutes.labels("none" if problem else "found").inc()
        await self._store.put(keys.MINUTE_HINDSIGHT, minute_s, found.SerializeToString())

    def _problem(self, requests: list[PastRequest]) -> str:
        """Returns why a minute cannot be looked at; empty if it can."""
        if len(requests) > self._most_requests:
            return f"more than {self._most_requests} requests (trainer.hindsight_max_requests)"
        if others := self._mesh.profiles - {self._spec.profile.name}:
            return f"the trainer does not know profile {min(others)} of an endpoint"
        return ""


def _write(found: pb.Hindsight, looked: LookBack, requests: list[PastRequest]) -> None:
    tasks: dict[str, pb.TaskHindsight] = {}
    for request in requests:
        task = tasks.get(request.task)
        if task is None:
            part = looked.parts.get(request.task, 0.0)
            task = tasks[request.task] = found.tasks.add(task=request.task, bound_sum=part)
        task.recorded_count += 1
        task.delivered_reward_sum += request.reward
    for count, performance in looked.static_large:
        found.static_large.add(device_count=count, performance=performance)


def _is_behind(one: str, other: str) -> bool:
    """Returns whether an id of the stream comes before another one."""
    first, second = (tuple(map(int, each.split("-"))) for each in (one, other))
    return first < second


def _minute_of(wall_s: float) -> int:
    return int(wall_s // MINUTE_S) * MINUTE_S
