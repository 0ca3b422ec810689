"""Clocks as an argument, so that tests can move time by hand."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time and waits; every component gets its clock from the one that builds it."""

    def monotonic_s(self) -> float:
        """Returns seconds from an arbitrary start; never goes back. For intervals."""
        ...

    def wall_ns(self) -> int:
        """Returns nanoseconds since 1970. Only for stamps that leave the process."""
        ...

    async def sleep(self, duration_s: float) -> None:
        """Waits for `duration_s` seconds of this clock; zero or less yields once."""
        ...


class SystemClock:
    """The machine's clock."""

    # A request looks at it a dozen times: without a function of our own in between.
    monotonic_s = staticmethod(time.monotonic)
    wall_ns = staticmethod(time.time_ns)

    async def sleep(self, duration_s: float) -> None:
        """Waits in real time."""
        await asyncio.sleep(max(duration_s, 0.0))
