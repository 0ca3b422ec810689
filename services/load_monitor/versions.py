"""Numbers of publications, which grow whichever monitor publishes."""

from __future__ import annotations

from services.common.clock import Clock
from services.common.errors import InvalidArgumentError

_NS_PER_MS = 1_000_000
_MOST_AHEAD_MS = 60_000


class Versions:
    """Numbers of publications: never below the wall clock in ms at the start, never repeated.

    A process that starts later thus goes on above the one before it, with or without Redis: no
    monitor publishes a thousand states a second.

    Args:
        clock: Gives the wall clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = self._now_ms()

    def observe(self, version: int) -> None:
        """Makes the next number larger than `version`."""
        self._last = max(self._last, version)

    def next(self) -> int:
        """Returns the next number."""
        self._last += 1
        return self._last

    def accept(self, version: int) -> int:
        """Returns the number a client has seen, after making sure that the next one passes it.

        The client may come from a monitor whose clock was ahead.

        Raises:
            InvalidArgumentError: No monitor can have published it.
        """
        highest = max(self._last, self._now_ms() + _MOST_AHEAD_MS)
        if not 0 <= version <= highest:
            raise InvalidArgumentError("after_version", f"is {version}", f"0 to {highest}")
        self.observe(version)
        return version

    def _now_ms(self) -> int:
        return self._clock.wall_ns() // _NS_PER_MS
