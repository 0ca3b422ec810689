"""What an ONLINE run does: read, learn a little, save, acknowledge, publish, maybe promote."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from router.dqn.snapshot import load_snapshot
from services.common.clock import Clock
from services.common.errors import AbortedError, UnavailableError
from services.common.log import Logger
from services.common.state.errors import StateUnavailableError
from services.common.state.experience_stream import ExperienceStream
from services.common.state.keys import EXPERIENCE_LIMIT
from services.trainer.consumer import ExperienceConsumer, Records
from services.trainer.drops import Counts, Drops
from services.trainer.gate import Gate, GateRefusedError
from services.trainer.jobs import OnlineSpec
from services.trainer.lost_processes import LostProcesses
from services.trainer.mesh_view import MeshView
from services.trainer.metrics import TrainerMetrics
from services.trainer.promotion import RoutersRefusedError
from services.trainer.registry import PolicyRegistry
from services.trainer.rollout import RolloutHeldError
from services.trainer.runs import Run
from services.trainer.settings import TrainerSettings
from services.trainer.turn import Turn, TurnLostError
from services.trainer.worker import WorkerDiedError, WorkerError
from trainer.learning.checkpoint import OvertakenError

if TYPE_CHECKING:
    from trainer.learning.online.loop import LoopStatus

_LEARN_S = 0.2
_BACKOFF_S = 1.0
_MOST_DEATHS = 5
_APART_S = 600.0
"""Time after a death that makes the next one the first again, seconds."""
_MOST_PROPOSED = 50
"""Most proposals of a run that are kept.

The registry has room for 200 policies, and a run makes two a minute: what somebody has published
himself would be gone after two hours.
"""
_MOST_UNSAVED = EXPERIENCE_LIMIT
"""Most entries that are taken in while the learner cannot save."""


class Learner(Protocol):
    """Runs the methods of an `OnlineJob`; `Worker` is one."""

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """Runs a method; raises WorkerDiedError or WorkerError."""

    async def close(self) -> None:
        """Ends it; never raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineTraining:
    """The body of online runs.

    Attributes:
        settings: the trainer's settings.
        deadline_s: deadline that sets the time scale, seconds.
        stream: where experience comes from.
        turn: whose turn it is to learn.
        mesh: what is known of routers and candidates.
        tasks: names of the mesh's tasks.
        registry: where policies are published.
        gate: judge of what is to be promoted.
        clock: clock.
        log: log.
        metrics: metrics.
        fallback_initial: the start where no snapshot is active; None for fresh weights.
        start_learner: makes the learner of a run.
    """

    settings: TrainerSettings
    deadline_s: float
    stream: ExperienceStream
    turn: Turn
    mesh: MeshView
    tasks: frozenset[str]
    registry: PolicyRegistry
    gate: Gate
    clock: Clock
    log: Logger
    metrics: TrainerMetrics
    fallback_initial: bytes | None
    start_learner: Callable[[OnlineSpec], Learner]
    _drops: Drops = field(default_factory=Drops, init=False)
    _state: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    """Held by whoever works on what is saved: a run, or a drop between runs."""
    _caretakers: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    async def __call__(self, run: Run) -> None:
        """Runs until `run.step_count` learner steps are done, for ever if it is 0.

        Starts with its turn, from what whoever had the turn before has saved; so again after
        a turn that was lost.
        """
        while True:
            await self.turn.wait()
            try:
                async with self._state, self._kept_turn():
                    await self._learn(run)
                    return
            except TurnLostError:
                continue
            finally:
                self._take_care()

    @asynccontextmanager
    async def _kept_turn(self) -> AsyncIterator[None]:
        """Has the turn until the block ends, however long that takes; raises TurnLostError."""
        await self.turn.check()
        keeping = asyncio.create_task(self.turn.keep())
        try:
            yield
        finally:
            keeping.cancel()
            await self.turn.end()

    async def _learn(self, run: Run) -> None:
        learner = self.start_learner(await self._spec(run.seed))
        try:
            await _Session(self, run, learner, self._drops).run()
        finally:
            await learner.close()

    async def drop_replay(self, since_s: float, until_s: float) -> Counts:
        """Drops what was learned from in a span of time, of the run under way or of the saved one.

        A run does it between two rounds, or as soon as its learner has started.

        Args:
            since_s: start of the span, seconds since 1970.
            until_s: end of the span, itself not in it.

        Returns:
            How many transitions were dropped, and how many are left.

        Raises:
            UnavailableError: The learner cannot do it now.
            ResourceExhaustedError: Too many drops wait.
        """
        return await self._drops.ask(since_s, until_s, self._take_care)

    async def close(self) -> None:
        """Ends a drop that is under way between runs."""
        tasks = list(self._caretakers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take_care(self) -> None:
        """Has what is saved changed if drops wait and no run has it."""
        if len(self._drops) and not self._state.locked() and not self._caretakers:
            task = asyncio.create_task(self._drop_saved())
            self._caretakers.add(task)
            task.add_done_callback(self._after_care)

    def _after_care(self, task: asyncio.Task[None]) -> None:
        self._caretakers.discard(task)
        if not task.cancelled():
            self._take_care()  # one may have come as it ended

    async def _drop_saved(self) -> None:
        """Does the drops that wait, by a learner of their own."""
        try:
            async with self._state, self._kept_turn():
                learner = self.start_learner(await self._spec(0))
                timeout_s = self.settings.worker_timeout_s

                async def drop(since_s: float, until_s: float) -> Counts:
                    counts: Counts = await learner.call(
                        "drop", since_s, until_s, timeout_s=timeout_s
                    )
                    await learner.call("save", timeout_s=timeout_s)
                    return counts

                try:
                    await self._drops.carry_out(drop)
                finally:
                    await learner.close()
        except BaseException as error:  # whoever asked is told, and logs what is a bug
            self._drops.fail(error)
            if not isinstance(error, Exception):
                raise

    async def _spec(self, seed: int) -> OnlineSpec:
        settings = self.settings
        active = await self.registry.active()
        initial = active.snapshot if active is not None and active.snapshot else None
        return OnlineSpec(
            path=settings.data_dir / "online.state",
            deadline_s=self.deadline_s,
            patience_s=settings.patience_s,
            min_transitions=settings.min_transitions,
            replay_capacity=settings.replay_capacity,
            hidden_count=settings.hidden_count,
            seed=seed,
            initial=initial or self.fallback_initial,
        )


class _Session:
    """One run's state."""

    def __init__(self, parts: OnlineTraining, run: Run, learner: Learner, drops: Drops) -> None:
        self._parts = parts
        self._settings = settings = parts.settings
        self._clock = parts.clock
        self._run = run
        self._learner = learner
        self._drops = drops
        self._consumer = ExperienceConsumer(
            stream=parts.stream,
            clock=parts.clock,
            log=parts.log,
            metrics=parts.metrics,
            group=settings.consumer_group,
            consumer=settings.consumer,
            read_count=settings.read_count,
            claim_idle_s=settings.claim_idle_s,
            orphan_s=3.0 * settings.patience_s + settings.save_interval_s,
            mesh=parts.mesh,
            tasks=parts.tasks,
        )
        self._lost = LostProcesses(parts.mesh, parts.clock, after_s=settings.patience_s)
        self._dropped: Mapping[str, int] | None = None
        self._gaps = (0, 0, 0)
        self._first_step: int | None = None
        self._published_step = 0
        self._proposed: deque[tuple[str, str]] = deque()
        self._deaths, self._died_s = 0, parts.clock.monotonic_s()
        self._can_save = True
        now_s = parts.clock.monotonic_s()
        self._save_due_s = now_s + settings.save_interval_s
        self._publish_due_s = now_s + settings.publish_interval_s

    async def run(self) -> None:
        """Works until the planned steps are done."""
        while True:
            try:
                if self._first_step is None:
                    # Steps of earlier runs, restored with the state, are not this run's.
                    before: LoopStatus = await self._call("learn", 0.0)
                    self._first_step = self._published_step = before.step_count
                await self._drops.carry_out(self._drop)
                status = await self._round()
            except WorkerDiedError as error:
                await self._after_death(error)
                continue
            planned = self._run.step_count
            if planned and status.step_count - (self._first_step or 0) >= planned:
                break
        await self._save()
        await self._publish(status)

    async def _drop(self, since_s: float, until_s: float) -> Counts:
        """Drops a span of time from the replay and saves."""
        counts: Counts = await self._call("drop", since_s, until_s)
        if not await self._save():
            raise UnavailableError(
                "NOT_SAVED",
                f"{counts[0]} transitions are dropped, but that could not be saved yet: they may"
                " come back if the trainer ends before it can",
            )
        return counts

    async def _round(self) -> LoopStatus:
        """Reads what came, learns within the share of the core, saves and publishes if due."""
        began_s = self._clock.monotonic_s()
        rest_s = _LEARN_S * (1.0 / self._settings.learn_cpu_share - 1.0)
        await self._parts.turn.check()
        records = await self._read(max(0.05, rest_s))
        if records is None:
            await self._clock.sleep(_BACKOFF_S)
        elif any(records):
            known = await self._call("ingest", *records)
            await self._consumer.settle(known)
        status: LoopStatus = await self._call("learn", _LEARN_S)
        if gone := self._lost.find(status.open_processes):
            await self._call("ingest", [], [], gone)
        await self._report(status, self._clock.monotonic_s() - began_s)
        now_s = self._clock.monotonic_s()
        if now_s >= self._save_due_s:
            await self._save()
            self._save_due_s = self._clock.monotonic_s() + self._settings.save_interval_s
        new_steps = status.step_count - self._published_step
        if now_s >= self._publish_due_s and new_steps >= self._settings.publish_min_steps:
            await self._publish(status)
            self._publish_due_s = self._clock.monotonic_s() + self._settings.publish_interval_s
        # A busy stream answers at once: the rest of the share is slept off here.
        await self._clock.sleep(began_s + rest_s + _LEARN_S - self._clock.monotonic_s())
        return status

    async def _read(self, block_s: float) -> Records | None:
        """Reads what came; while nothing can be saved, no more than the stream holds.

        Whatever is open is in memory here and in the learner, until a save.
        """
        if self._can_save or self._consumer.open_count < _MOST_UNSAVED:
            return await self._consumer.read(block_s)
        await self._clock.sleep(block_s)
        return Records([], [], [])

    async def _call(self, method: str, *arguments: object) -> Any:
        return await self._learner.call(
            method, *arguments, timeout_s=self._settings.worker_timeout_s
        )

    async def _report(self, status: LoopStatus, elapsed_s: float) -> None:
        done = status.step_count - (self._first_step or 0)
        before = self._run.progress.step_count
        metrics = self._parts.metrics
        for problem in status.problems:
            self._parts.log.error("learner_problem", reason=problem)
        metrics.steps.set(status.step_count)
        metrics.transitions.set(status.transition_count)
        metrics.waiting.set(status.waiting_count)
        metrics.loss.set(status.loss or 0.0)
        metrics.mean_reward.set(status.mean_reward or 0.0)
        self._report_gaps(status)
        with suppress(StateUnavailableError):  # shown by store_reachable
            metrics.backlog.set(await self._parts.stream.count())
        await self._run.update(
            step_count=done,
            transition_count=status.transition_count,
            loss=status.loss,
            mean_reward=status.mean_reward,
            steps_per_second=(done - before) / max(elapsed_s, 1e-3),
        )

    def _report_gaps(self, status: LoopStatus) -> None:
        """Shows what never came and what was of no use; says so when there is more of it."""
        metrics = self._parts.metrics
        told = status.told_decisions + status.told_outcomes
        gaps = (status.missing_count, status.cut_count, told)
        metrics.missing_decisions.set(gaps[0])
        metrics.cut_processes.set(gaps[1])
        metrics.told_drops.set(gaps[2])
        if self._dropped is not None:
            for reason, count in status.dropped_counts.items():
                new = max(0, count - self._dropped.get(reason, 0))
                metrics.records_dropped.labels(reason=reason).inc(new)
            if any(now > before for now, before in zip(gaps, self._gaps, strict=True)):
                self._parts.log.warning(
                    "experience_gap",
                    missing_decisions=gaps[0],
                    cut_processes=gaps[1],
                    told_drops=gaps[2],
                )
        self._dropped, self._gaps = status.dropped_counts, gaps

    async def _save(self) -> bool:
        """Saves and acknowledges what is safe then; says whether that worked."""
        await self._parts.turn.check()
        try:
            keys = await self._call("save")
        except WorkerError as error:
            self._parts.metrics.save_failures.inc()
            self._parts.log.error("save_failed", reason=str(error))
            if error.reason == OvertakenError.reason:
                # Another trainer had the turn while this one stood still, and gave it back since.
                raise TurnLostError(str(error)) from error
            # A full disk: the former state stays valid and the stream keeps what it holds.
            self._can_save = False
            return False
        self._can_save = True
        await self._consumer.settle(keys)
        return True

    async def _publish(self, status: LoopStatus) -> None:
        """Publishes the present policy; promotes it if the run wants that and the gate passes."""
        blob: bytes = await self._call("snapshot", {"training_id": self._run.progress.training_id})
        parent = load_snapshot(blob).training.get("parent") or "none"
        text = f"online, {status.transition_count} transitions, parent {parent}"
        record = await self._parts.registry.publish(blob, text)
        self._published_step = status.step_count
        await self._run.update(policy_version=record.version)
        if (record.policy, record.version) not in self._proposed:
            self._proposed.append((record.policy, record.version))
        while len(self._proposed) > _MOST_PROPOSED:
            await self._parts.registry.forget(*self._proposed.popleft())
        if not self._run.promote:
            return
        try:
            # What gate or routers refuse is rejected and logged there, so is that another one is
            # on its way or pinned, and somebody else may have activated a policy meanwhile;
            # learning goes on.
            with suppress(GateRefusedError, RoutersRefusedError, AbortedError, RolloutHeldError):
                await self._parts.gate.promote(self._parts.registry, record, blob, by_hand=False)
        except (WorkerDiedError, WorkerError) as error:
            self._parts.log.error("gate_failed", reason=str(error))

    async def _after_death(self, error: WorkerDiedError) -> None:
        """Lets the next call start a new worker from the saved state; gives up after a few.

        Of deaths that are far apart none is one too many: a run goes on for months.
        """
        now_s = self._clock.monotonic_s()
        if now_s - self._died_s >= _APART_S:
            self._deaths = 0
        self._deaths, self._died_s = self._deaths + 1, now_s
        self._parts.metrics.worker_failures.inc()
        self._parts.log.error("worker_died", reason=str(error), count=self._deaths)
        if self._deaths > _MOST_DEATHS:
            raise error
        self._consumer.forget()
        await self._clock.sleep(_BACKOFF_S * self._deaths)
