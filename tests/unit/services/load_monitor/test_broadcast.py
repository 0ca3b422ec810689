"""Watchers get the newest publication and never an older one."""

from __future__ import annotations

import asyncio

from services.load_monitor.broadcast import Broadcast
from services.load_monitor.model import Publication
from tests.fakes.clock import FakeClock, settle


async def test_broadcast_skips_but_never_goes_back() -> None:
    """A slow watcher gets the newest only; an older publication is refused."""
    clock = FakeClock()
    broadcast = Broadcast(clock)
    waiting = asyncio.create_task(broadcast.after(0))
    await settle()
    for version in (1, 2, 3):
        assert broadcast.offer(Publication(version, b""))
    assert not broadcast.offer(Publication(2, b""))
    found = await waiting
    assert found.version == 3
    assert await broadcast.after(2) is found
    clock.move(2.5)
    assert broadcast.age_s == 2.5
