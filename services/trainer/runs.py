"""Training runs: started by RPC or kept under way, watched, one per mode at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol

from services.common.clock import Clock
from services.common.errors import FailedPreconditionError, NotFoundError
from services.common.log import Logger
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import Mode, RunProgress, RunState

_RUNS_KEPT = 50
_FIRST_WAIT_S = 5.0
_LONGEST_WAIT_S = 300.0
_STEADY_S = 600.0
"""After a run that went on for so long before it failed, the wait for the next one is short again,
seconds."""


class RunBody(Protocol):
    """What a run does; returns when it is done, raises if it failed."""

    def __call__(self, run: Run) -> Coroutine[Any, Any, None]:
        """Runs."""


class Run:
    """One training run: its request and its progress."""

    def __init__(
        self, *, training_id: str, mode: Mode, step_count: int, seed: int, promote: bool
    ) -> None:
        """Starts RUNNING with nothing done."""
        self.step_count = step_count
        self.seed = seed
        self.promote = promote
        self.progress = RunProgress(
            training_id=training_id, mode=mode, planned_step_count=step_count
        )
        self._changed = asyncio.Condition()
        self._revision = 0

    @property
    def is_over(self) -> bool:
        """True once it ended."""
        return self.progress.state is not RunState.RUNNING

    async def update(self, **changes: Any) -> None:
        """Changes fields of the progress and tells the watchers."""
        async with self._changed:
            self.progress = replace(self.progress, **changes)
            self._revision += 1
            self._changed.notify_all()

    async def watch(self) -> AsyncIterator[RunProgress]:
        """Yields the progress, then every newer one, until the run is over."""
        seen = -1
        while True:
            async with self._changed:
                while self._revision == seen:
                    await self._changed.wait()
                seen, progress = self._revision, self.progress
            yield progress
            if progress.state is not RunState.RUNNING:
                return


class RunBook:
    """Starts runs and remembers them."""

    def __init__(
        self,
        *,
        clock: Clock,
        log: Logger,
        metrics: TrainerMetrics,
        body_of: Callable[[Mode], RunBody],
    ) -> None:
        """Takes what the runs of each mode do."""
        self._clock = clock
        self._log = log
        self._metrics = metrics
        self._body_of = body_of
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, *, mode: Mode, step_count: int, seed: int, promote: bool) -> Run:
        """Starts a run.

        Raises:
            FailedPreconditionError: One of this mode is under way.
        """
        other = self._under_way(mode)
        if other is not None:
            raise FailedPreconditionError(
                f"training run {other.progress.training_id} of this mode is under way",
                reason="TRAINING_UNDER_WAY",
                metadata={"training_id": other.progress.training_id},
            )
        run = self._made(mode, step_count=step_count, seed=seed, promote=promote)
        self._do(self._drive(run))
        return run

    def keep(self, mode: Mode, *, promote: bool) -> None:
        """Has an open-ended run of a mode under way from now on, until `stop`.

        One that fails is followed by another one, after a wait that grows from failure to failure.
        One that somebody has started himself is waited for.
        """
        self._do(self._keep(mode, promote))

    async def _keep(self, mode: Mode, promote: bool) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            other = self._under_way(mode)
            if other is not None:
                async for _ in other.watch():
                    pass
                continue
            began_s = self._clock.monotonic_s()
            run = self._made(mode, step_count=0, seed=0, promote=promote)
            await self._drive(run)
            if run.progress.state is not RunState.FAILED:
                return
            if self._clock.monotonic_s() - began_s >= _STEADY_S:
                wait_s = _FIRST_WAIT_S
            self._log.warning("training_waits", mode=mode.name.lower(), wait_s=wait_s)
            await self._clock.sleep(wait_s)
            wait_s = min(_LONGEST_WAIT_S, 2.0 * wait_s)

    def _under_way(self, mode: Mode) -> Run | None:
        """Returns the run of a mode that is under way, None if none is."""
        for run in self._runs.values():
            if run.progress.mode is mode and not run.is_over:
                return run
        return None

    def _made(self, mode: Mode, *, step_count: int, seed: int, promote: bool) -> Run:
        """Returns a new run, in the book; the oldest that are over make way."""
        training_id = f"{mode.name.lower()}-{self._clock.wall_ns()}-{next(self._numbers)}"
        run = Run(
            training_id=training_id, mode=mode, step_count=step_count, seed=seed, promote=promote
        )
        self._runs[training_id] = run
        over = [key for key, each in self._runs.items() if each.is_over]
        for key in over[: max(0, len(self._runs) - _RUNS_KEPT)]:
            del self._runs[key]
        self._log.info("training_started", training_id=training_id, seed=seed, promote=promote)
        return run

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def get(self, training_id: str) -> Run:
        """Returns a run; an empty id means the newest.

        Raises:
            NotFoundError: There is no such run.
        """
        if not training_id and self._runs:
            return next(reversed(self._runs.values()))
        if training_id not in self._runs:
            raise NotFoundError("training run", training_id or "(newest)", self._runs)
        return self._runs[training_id]

    async def stop(self) -> None:
        """Ends every run as STOPPED and waits for it."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _drive(self, run: Run) -> None:
        training_id, mode = run.progress.training_id, run.progress.mode
        try:
            await self._body_of(mode)(run)
        except asyncio.CancelledError:
            await run.update(state=RunState.STOPPED, time_left_s=None)
            raise
        except Exception as error:
            self._metrics.training_failures.labels(mode.name.lower()).inc()
            self._log.exception("training_failed", error, training_id=training_id)
            await run.update(state=RunState.FAILED, error=_one_line(error), time_left_s=None)
        else:
            self._log.info("training_succeeded", training_id=training_id)
            await run.update(state=RunState.SUCCEEDED, time_left_s=None)


def _one_line(error: Exception) -> str:
    """Returns the error's text for the run's progress, never a traceback."""
    return " ".join(str(error).split())[:500] or type(error).__name__
