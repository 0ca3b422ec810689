"""Training runs: started by RPC, watched, one per mode at a time."""

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
from services.trainer.model import Mode, RunProgress, RunState

_RUNS_KEPT = 50


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

    def __init__(self, *, clock: Clock, log: Logger, body_of: Callable[[Mode], RunBody]) -> None:
        """Takes what the runs of each mode do."""
        self._clock = clock
        self._log = log
        self._body_of = body_of
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, *, mode: Mode, step_count: int, seed: int, promote: bool) -> Run:
        """Starts a run.

        Raises:
            FailedPreconditionError: One of this mode is under way.
        """
        for other in self._runs.values():
            if other.progress.mode is mode and not other.is_over:
                raise FailedPreconditionError(
                    f"training run {other.progress.training_id} of this mode is under way",
                    reason="TRAINING_UNDER_WAY",
                    metadata={"training_id": other.progress.training_id},
                )
        training_id = f"{mode.name.lower()}-{self._clock.wall_ns()}-{next(self._numbers)}"
        run = Run(
            training_id=training_id, mode=mode, step_count=step_count, seed=seed, promote=promote
        )
        self._runs[training_id] = run
        while len(self._runs) > _RUNS_KEPT:
            self._runs.popitem(last=False)
        task = asyncio.create_task(self._drive(run, self._body_of(mode)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._log.info("training_started", training_id=training_id, seed=seed, promote=promote)
        return run

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

    async def _drive(self, run: Run, body: RunBody) -> None:
        training_id = run.progress.training_id
        try:
            await body(run)
        except asyncio.CancelledError:
            await run.update(state=RunState.STOPPED, time_left_s=None)
            raise
        except Exception as error:
            self._log.exception("training_failed", error, training_id=training_id)
            await run.update(state=RunState.FAILED, error=_one_line(error), time_left_s=None)
        else:
            self._log.info("training_succeeded", training_id=training_id)
            await run.update(state=RunState.SUCCEEDED, time_left_s=None)


def _one_line(error: Exception) -> str:
    """Returns the error's text for the run's progress, never a traceback."""
    return " ".join(str(error).split())[:500] or type(error).__name__
