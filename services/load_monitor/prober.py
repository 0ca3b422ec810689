"""Probes every endpoint: does it answer, are its models ready, what do its counters say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from router.fleet import EndpointSpec
from services.common.checks import MAX_COUNT
from services.common.clock import Clock
from services.common.errors import cut
from services.common.log import Logger
from services.common.supervision import Supervisor
from services.common.tiers.errors import TierDeadlineError, TierError
from services.load_monitor.board import Board
from services.load_monitor.health import Counters, EndpointTracker
from services.load_monitor.metrics_page import MetricsPageError, read_queue_depths
from services.load_monitor.model import MAX_REASON_BYTES

_SHORTEST_PAUSE_S = 0.05
# An endpoint that is away is looked at at least this often: its return should not wait.
_LONGEST_DOWN_PAUSE_S = 0.5


class ModelCounters(Protocol):
    """What the monitor reads of a server's counters of one model."""

    @property
    def success_count(self) -> int:
        """Requests finished."""
        ...

    @property
    def fail_count(self) -> int:
        """Requests failed."""
        ...

    @property
    def queue_s(self) -> float:
        """Time all of them spent in the queue, seconds."""
        ...

    @property
    def compute_s(self) -> float:
        """Time all of them spent in the model, seconds."""
        ...


class ModelConfig(Protocol):
    """What the monitor reads of a model's configuration."""

    @property
    def kind(self) -> str:
        """`reference`, `paced` or `production`; empty if it does not say."""
        ...


class ProbeClient(Protocol):
    """The calls a probe makes; every one ends within the client's timeout."""

    async def is_live(self) -> bool:
        """Returns whether the server answers at all."""
        ...

    async def is_ready(self, model: str = "") -> bool:
        """Returns whether a model can serve."""
        ...

    async def statistics(self, model: str = "") -> Mapping[str, ModelCounters]:
        """Returns counters per model; raises TierError."""
        ...

    async def model_config(self, model: str) -> ModelConfig:
        """Returns a model's configuration; raises TierError."""
        ...

    async def close(self) -> None:
        """Closes the connection."""
        ...


@dataclass(frozen=True, slots=True)
class ProbeTimes:
    """How often probes are made.

    Args:
        gauge_interval_s: Between two readings of the gauges, seconds.
        ready_interval_s: Between two checks of readiness, seconds.
        timeout_s: Longest time one call may take, seconds.
    """

    gauge_interval_s: float
    ready_interval_s: float
    timeout_s: float


class Prober:
    """Keeps one probe per endpoint of the board.

    Args:
        board: Tells the endpoints, is told what was seen.
        connect: Makes the client of an endpoint.
        times: How often.
        clock: For the intervals.
        log: For changes of health.
        is_publishing: False slows the gauges down to the readiness interval: a monitor that only
            stands by must not double the load.
    """

    def __init__(
        self,
        *,
        board: Board,
        connect: Callable[[EndpointSpec], ProbeClient],
        times: ProbeTimes,
        clock: Clock,
        log: Logger,
        is_publishing: Callable[[], bool],
        supervisor: Supervisor,
    ) -> None:
        self._board = board
        self._connect = connect
        self._times = times
        self._clock = clock
        self._log = log
        self._is_publishing = is_publishing
        self._supervisor = supervisor
        self._tasks: dict[str, tuple[EndpointTracker, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Probes until cancelled, following the board's endpoint list."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._board.endpoints_changed.clear()
                self._follow(group)
                await self._board.endpoints_changed.wait()

    def _follow(self, group: asyncio.TaskGroup) -> None:
        trackers = self._board.trackers
        for name, (tracker, task) in list(self._tasks.items()):
            if trackers.get(name) is not tracker:
                task.cancel()
                del self._tasks[name]
        for name, tracker in trackers.items():
            if name not in self._tasks:
                probe = partial(self._probe_for_ever, tracker)
                task = group.create_task(self._supervisor.keep("probe", probe))
                self._tasks[name] = (tracker, task)

    async def _probe_for_ever(self, tracker: EndpointTracker) -> None:
        client = self._connect(tracker.spec)
        ready_due_s = self._clock.monotonic_s()
        try:
            while True:
                start_s = self._clock.monotonic_s()
                before = tracker.view(draining=False).health
                was_live = bool(tracker.is_live)
                check_ready = start_s >= ready_due_s or not was_live
                try:
                    await self._probe(client, tracker, check_ready=check_ready)
                except Exception as error:
                    # Whatever a server answers, it is that server's fault and nobody else's.
                    self._log.exception("probe_failed", error, endpoint=tracker.spec.name)
                    tracker.saw_failure(f"cannot be probed: {type(error).__name__}")
                if start_s >= ready_due_s:
                    ready_due_s = start_s + self._times.ready_interval_s
                self._board.mark()
                view = tracker.view(draining=False)
                if view.health is not before:
                    self._log.info(
                        "endpoint_health",
                        endpoint=tracker.spec.name,
                        health=view.health.value,
                        reason=view.reason or "none",
                    )
                spent_s = self._clock.monotonic_s() - start_s
                pause_s = self._pause_s(tracker) - spent_s
                await self._clock.sleep(max(pause_s, _SHORTEST_PAUSE_S))
        finally:
            await client.close()

    def _pause_s(self, tracker: EndpointTracker) -> float:
        if not tracker.is_live:
            return min(self._times.ready_interval_s, _LONGEST_DOWN_PAUSE_S)
        if self._is_publishing():
            return self._times.gauge_interval_s
        return max(self._times.gauge_interval_s, self._times.ready_interval_s)

    async def _probe(
        self, client: ProbeClient, tracker: EndpointTracker, *, check_ready: bool
    ) -> None:
        """Makes one probe and tells the tracker; never raises for what the endpoint does."""
        try:
            counters = await client.statistics()
        except TierError as error:
            # A server may live without giving statistics; one that let a call run out of time is
            # not asked again at once, or a hung server would be noticed twice as late.
            if isinstance(error, TierDeadlineError) or not await client.is_live():
                tracker.saw_failure(f"does not answer: {error}")
                return
            counters = {}
        own = {
            model: counters[model] for model in tracker.spec.models.values() if model in counters
        }
        problem = _impossible(own)
        if problem:
            tracker.saw_failure(problem)
            return
        tracker.saw_answer()
        tracker.saw_counters(
            {
                model: Counters(c.success_count, c.fail_count, c.queue_s, c.compute_s)
                for model, c in own.items()
            }
        )
        if check_ready:
            for tier, model in tracker.spec.models.items():
                tracker.saw_ready(tier, await client.is_ready(model))
            await self._read_kinds(client, tracker)
        await self._read_queues(tracker)

    async def _read_kinds(self, client: ProbeClient, tracker: EndpointTracker) -> None:
        for tier, model in tracker.models_without_kind().items():
            try:
                tracker.saw_kind(tier, (await client.model_config(model)).kind)
            except TierError:
                continue  # asked again at the next check

    async def _read_queues(self, tracker: EndpointTracker) -> None:
        address = tracker.spec.metrics_address
        if not address:
            return
        try:
            tracker.saw_queues(await read_queue_depths(address, timeout_s=self._times.timeout_s))
        except MetricsPageError as error:
            if tracker.saw_queues(None):  # unknown is not zero
                problem = cut(str(error), MAX_REASON_BYTES)
                self._log.warning("metrics_page_bad", endpoint=tracker.spec.name, problem=problem)


def _impossible(by_model: Mapping[str, ModelCounters]) -> str:
    """Returns what no server can have counted; empty if everything is possible."""
    for model, counters in by_model.items():
        for name in ("success_count", "fail_count", "queue_s", "compute_s"):
            value = getattr(counters, name)
            if not 0 <= value <= MAX_COUNT:
                return f"statistics of {model} say that {name} is {value:g}"
    return ""
