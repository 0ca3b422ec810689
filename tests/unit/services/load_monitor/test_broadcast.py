"""Watchers get the newest publication and never an older one."""

from __future__ import annotations

import asyncio

from services.load_monitor.broadcast import Broadcast
from services.load_monitor.model import Publication
from tests.fakes.clock import settle


async def test_broadcast_skips_but_never_goes_back() -> None:
    """A slow watcher gets the newest only; an older publication is refused."""
    broadcast = Broadcast()
    waiting = asyncio.create_task(broadcast.after(0))
    await settle()
    for version in (1, 2, 3):
        assert broadcast.offer(Publication(version, b"", 0))
    assert not broadcast.offer(Publication(2, b"", 0))
    found = await waiting
    assert found.version == 3
    assert await broadcast.after(2) is found
