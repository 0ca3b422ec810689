"""The calls of one server that run now: how many, and which of them only wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from services.common.errors import ResourceExhaustedError, UnavailableError

_RETRY_AFTER_S = 0.25
_ADDRESS_SHARE, _LEAST_PER_ADDRESS = 8, 16
"""One address may have an eighth of the room for calls that whoever comes may open, and so many."""


class RunningCalls:
    """Bounds the calls that run at a time, and ends at a stop those that serve nobody's request.

    Those that only wait take no room from the others, and those that whoever comes may open take
    none from those of callers that are known. Of these one address has a part only: clients and
    balancers that watch a server's health take it for dead where they are refused.

    Args:
        most: Most calls at a time, of each of the three kinds.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._watches: set[asyncio.Task[object]] = set()
        self._ended: set[asyncio.Task[object]] = set()
        self._is_stopping = False
        self.count = 0
        self._watch_count = 0
        self._open_watches: Counter[str] = Counter()
        self._open_watch_count = 0

    @property
    def serving_count(self) -> int:
        """Calls that serve somebody's request."""
        return self.count - self._watch_count - self._open_watch_count

    def check_room(self) -> None:
        """Raises ResourceExhaustedError if more calls run than may; this one is counted already."""
        count = self.serving_count
        if count > self._most:
            raise ResourceExhaustedError(
                "TOO_MANY_CALLS", f"{self._most} calls", f"{count} calls", _RETRY_AFTER_S
            )

    @contextmanager
    def watching(self, opened_from: str | None = None) -> Iterator[None]:
        """Marks the running call as one that only waits for news: a stop ends it at once.

        Args:
            opened_from: The caller's address, where whoever comes may open such calls.

        Raises:
            ResourceExhaustedError: More of them run than may.
            UnavailableError: The server is stopping.
        """
        task = asyncio.current_task()
        assert task is not None
        if self._is_stopping:
            raise going_away()
        self._watches.add(task)
        is_open = opened_from is not None
        self._open_watch_count += is_open
        self._watch_count += not is_open
        if opened_from is not None:
            self._open_watches[opened_from] += 1
        try:
            self._check_watches(opened_from)
            yield
        except asyncio.CancelledError:
            if task in self._ended and task.uncancel() == 0:
                raise going_away() from None
            raise  # its client left
        finally:
            self._open_watch_count -= is_open
            self._watch_count -= not is_open
            if opened_from is not None:
                self._open_watches[opened_from] -= 1
                if not self._open_watches[opened_from]:
                    del self._open_watches[opened_from]
            self._watches.discard(task)
            self._ended.discard(task)

    def _check_watches(self, opened_from: str | None) -> None:
        count = self._watch_count if opened_from is None else self._open_watch_count
        checks = [(count, self._most, "watches")]
        if opened_from is not None:
            most = max(_LEAST_PER_ADDRESS, self._most // _ADDRESS_SHARE)
            checks.append((self._open_watches[opened_from], most, "watches of one address"))
        for count, most, what in checks:
            if count > most:
                raise ResourceExhaustedError(
                    "TOO_MANY_WATCHES", f"{most} {what}", f"{count} {what}", _RETRY_AFTER_S
                )

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Marks that the library sends a message of the running watch, which then ends after it.

        A task that is interrupted inside the library answers its call no more, and the server's
        stop waits for that call.
        """
        task = asyncio.current_task()
        assert task is not None
        self._watches.discard(task)
        yield
        if self._is_stopping:
            raise going_away()
        self._watches.add(task)

    def end_watches(self) -> None:
        """Ends the calls that only wait, now and from now on."""
        self._is_stopping = True
        self._ended |= self._watches
        for task in tuple(self._watches):
            task.cancel()


def going_away() -> UnavailableError:
    """Returns the error of a call that a stop ends, since it serves nobody's request."""
    return UnavailableError("DRAINING", "this server is going away; call another one")
