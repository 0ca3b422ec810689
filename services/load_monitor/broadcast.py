"""Hands the newest publication to every watcher; slow ones skip, nobody queues."""

from __future__ import annotations

import asyncio

from services.load_monitor.model import Publication


class Broadcast:
    """The newest publication, and a way to wait for a newer one.

    Memory is bounded by construction: there is one publication, however many watchers wait.
    """

    def __init__(self) -> None:
        self._latest: Publication | None = None
        self._changed = asyncio.Event()
        self.watcher_count = 0

    @property
    def latest(self) -> Publication | None:
        """The newest publication; None before the first."""
        return self._latest

    def offer(self, publication: Publication) -> bool:
        """Makes `publication` the newest; False if it is not newer than the one that is there."""
        if self._latest is not None and publication.version <= self._latest.version:
            return False
        self._latest = publication
        self._changed.set()
        self._changed = asyncio.Event()
        return True

    async def after(self, version: int) -> Publication:
        """Returns the newest publication above `version`, waiting for it."""
        while self._latest is None or self._latest.version <= version:
            await self._changed.wait()
        return self._latest
