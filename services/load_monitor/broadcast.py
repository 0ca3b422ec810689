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
        self._closed = False
        self.watcher_count = 0

    @property
    def latest(self) -> Publication | None:
        """The newest publication; None before the first."""
        return self._latest

    @property
    def closed(self) -> bool:
        """True once the process drains."""
        return self._closed

    def offer(self, publication: Publication) -> bool:
        """Makes `publication` the newest; False if it is not newer than the one that is there."""
        if self._latest is not None and publication.version <= self._latest.version:
            return False
        self._latest = publication
        self._wake()
        return True

    def close(self) -> None:
        """Ends every wait: the process drains."""
        self._closed = True
        self._wake()

    async def after(self, version: int) -> Publication | None:
        """Returns the newest publication above `version`, waiting for it; None if closed."""
        while not self._closed:
            if self._latest is not None and self._latest.version > version:
                return self._latest
            await self._changed.wait()
        return None

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
