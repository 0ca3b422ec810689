"""Time limits of many tasks, kept by one timer: nearly every task ends long before its limit."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Any


class TimeLimit:
    """Ends what runs within it, by TimeoutError, once its time is over; as `asyncio.timeout` does.

    It is entered once, by the task that it limits.
    """

    __slots__ = ("_cancelling", "_has_expired", "_limits", "_task", "_until_s")

    def __init__(self, limits: TimeLimits, until_s: float | None) -> None:
        self._limits = limits
        self._until_s = until_s
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._has_expired = False

    @property
    def until_s(self) -> float:
        """When its time is over, in the time of the event loop; infinite if never."""
        return math.inf if self._until_s is None else self._until_s

    @property
    def has_expired(self) -> bool:
        """True once its time was over."""
        return self._has_expired

    def set(self, until_s: float | None) -> None:
        """Takes another end, in the time of the event loop; None for none."""
        self._until_s = until_s
        self._limits.look_at(self.until_s)

    def expire(self) -> None:
        """Ends what runs."""
        assert self._task is not None  # entered
        self._has_expired = True
        self._task.cancel()

    def __enter__(self) -> TimeLimit:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._limits.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        self._limits.remove(self)
        # A task that others have cancelled as well is theirs to end.
        if (
            self._has_expired
            and self._task is not None
            and self._task.uncancel() <= self._cancelling
            and kind is asyncio.CancelledError
        ):
            raise TimeoutError from error


class TimeLimits:
    """The limits of one event loop's tasks.

    The timer stays where it is when a task ends, and finds nothing to do then. So it runs once in
    the time that limits last, and not once for each of them.
    """

    def __init__(self) -> None:
        """Has none."""
        self._open: dict[TimeLimit, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = math.inf

    def until(self, until_s: float | None) -> TimeLimit:
        """Returns a limit to enter; `until_s` is in the time of the event loop, None for none."""
        return TimeLimit(self, until_s)

    def within(self, span_s: float) -> TimeLimit:
        """Returns a limit to enter, so many seconds from now."""
        return TimeLimit(self, asyncio.get_running_loop().time() + span_s)

    def add(self, limit: TimeLimit) -> None:
        """Keeps a limit until it is removed."""
        self._open[limit] = None
        self.look_at(limit.until_s)

    def remove(self, limit: TimeLimit) -> None:
        """Keeps a limit no longer."""
        del self._open[limit]

    def look_at(self, moment_s: float) -> None:
        """Looks for limits that are reached at a moment, if not before."""
        if moment_s >= self._due_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = moment_s
        self._timer = asyncio.get_running_loop().call_at(moment_s, self._look)

    def _look(self) -> None:
        # Said, not left to the clock: a timer may be early by less than the clock can tell.
        now_s = max(self._due_s, asyncio.get_running_loop().time())
        self._timer, self._due_s = None, math.inf
        next_s = math.inf
        for limit in self._open:
            if limit.has_expired:
                continue
            if limit.until_s <= now_s:
                limit.expire()
            else:
                next_s = min(next_s, limit.until_s)
        self.look_at(next_s)
