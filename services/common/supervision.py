"""Keeps long tasks running: what one of them raises never ends the process.

A failure is logged with its cause, counted, and the task is started again after a wait that grows
from failure to failure. A task that keeps failing counts as broken; while one is, the service is
not ready.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.common.clock import Clock
from services.common.log import Logger

BROKEN_AFTER_S = 10.0
STEADY_S = 10.0
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0

BackgroundTask = Callable[[], Coroutine[Any, Any, None]]


class Supervisor:
    """Runs long tasks of one process.

    Args:
        registry: Where failures are counted.
        clock: For the waits.
        log: Where failures are told with their traceback.
        broken_after_s: How long a task fails again and again until it is broken, seconds.
        steady_s: How long it runs without failing until it is well again, seconds.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry,
        clock: Clock,
        log: Logger,
        broken_after_s: float = BROKEN_AFTER_S,
        steady_s: float = STEADY_S,
    ) -> None:
        self._clock = clock
        self._log = log
        self._broken_after_s = broken_after_s
        self._steady_s = steady_s
        self._failures = Counter(
            "tiercel_task_failures", "Failures of long tasks.", ["task"], registry=registry
        )
        self._broken_gauge = Gauge(
            "tiercel_task_broken", "1 while a long task keeps failing.", ["task"], registry=registry
        )
        self._failing_since_s: dict[str, float] = {}
        self._broken: set[str] = set()
        self._changed = asyncio.Event()

    @property
    def broken(self) -> frozenset[str]:
        """Names of the tasks that keep failing."""
        return frozenset(self._broken)

    async def changed(self) -> None:
        """Returns when `broken` may have changed since the last call."""
        await self._changed.wait()
        self._changed.clear()

    async def keep(self, name: str, task: BackgroundTask) -> None:
        """Runs `task` until it returns or this call is cancelled, however often it fails.

        Args:
            name: Its name in log and metrics; few distinct values. Tasks that share a name share
                its state.
            task: Called for every start.
        """
        wait_s = _FIRST_WAIT_S
        while True:
            start_s = self._clock.monotonic_s()
            steadying = asyncio.create_task(self._call_well(name))
            try:
                await task()
            except asyncio.CancelledError as error:
                if _is_asked_to_stop():
                    raise
                # Something the task waited for was cancelled; nobody cancelled the task.
                self._note(name, error, start_s)
            except Exception as error:
                self._note(name, error, start_s)
                if _is_asked_to_stop():
                    # It failed as it cleaned up: started again, it would not hear of the stop.
                    raise asyncio.CancelledError from error
            else:
                self._set_well(name)
                return
            finally:
                steadying.cancel()
            if self._clock.monotonic_s() - start_s >= self._steady_s:
                wait_s = _FIRST_WAIT_S
            await self._clock.sleep(wait_s * random.uniform(0.8, 1.2))
            wait_s = min(_LONGEST_WAIT_S, 2.0 * wait_s)

    def _note(self, name: str, error: BaseException, start_s: float) -> None:
        self._failures.labels(task=name).inc()
        self._log.exception("task_failed", error, task=name)
        since_s = self._failing_since_s.setdefault(name, start_s)
        if self._clock.monotonic_s() - since_s >= self._broken_after_s and name not in self._broken:
            self._broken.add(name)
            self._broken_gauge.labels(task=name).set(1.0)
            self._log.error("task_broken", task=name)
            self._changed.set()

    async def _call_well(self, name: str) -> None:
        await self._clock.sleep(self._steady_s)
        self._set_well(name)

    def _set_well(self, name: str) -> None:
        self._failing_since_s.pop(name, None)
        if name in self._broken:
            self._broken.remove(name)
            self._broken_gauge.labels(task=name).set(0.0)
            self._log.info("task_well", task=name)
            self._changed.set()


def _is_asked_to_stop() -> bool:
    current = asyncio.current_task()
    return current is None or current.cancelling() > 0
