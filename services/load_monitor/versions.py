"""Numbers of publications, which grow whichever monitor publishes."""

from __future__ import annotations

from services.common.clock import Clock

_NS_PER_MS = 1_000_000


class Versions:
    """Numbers of publications: never below the wall clock in ms at the start, never repeated.

    A process that starts later thus mostly goes on above the one before it, also without Redis.
    Nothing depends on it: the store hands out the number to go on from, and a watcher whose number
    this monitor has not reached gets the newest state at once.

    Args:
        clock: Gives the wall clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._last = clock.wall_ns() // _NS_PER_MS

    def observe(self, version: int) -> None:
        """Makes the next number larger than `version`."""
        self._last = max(self._last, version)

    def next(self) -> int:
        """Returns the next number."""
        self._last += 1
        return self._last
