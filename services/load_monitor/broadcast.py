"""Hands the newest picture to every watcher; slow ones skip, nobody queues."""

from __future__ import annotations

import asyncio

from services.common.clock import Clock
from services.load_monitor.model import Picture


class Broadcast:
    """The newest picture, and a way to wait for a newer one.

    Memory is bounded by construction: there is one picture, however many watchers wait.

    Args:
        clock: For the age of what is served.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offered_s = clock.monotonic_s()
        self._latest: Picture | None = None
        self._changed = asyncio.Event()
        self.watcher_count = 0

    @property
    def latest(self) -> Picture | None:
        """The newest picture; None before the first."""
        return self._latest

    @property
    def age_s(self) -> float:
        """Time since the newest picture came, seconds; by this process's own clock."""
        return self._clock.monotonic_s() - self._offered_s

    def offer(self, picture: Picture) -> bool:
        """Makes `picture` the newest; False if it is not newer than the one that is there."""
        if self._latest is not None and picture.version <= self._latest.version:
            return False
        self._latest = picture
        self._offered_s = self._clock.monotonic_s()
        self._changed.set()
        self._changed = asyncio.Event()
        return True

    async def after(self, version: int) -> Picture:
        """Returns the newest picture above `version`, waiting for it."""
        while self._latest is None or self._latest.version <= version:
            await self._changed.wait()
        return self._latest
