"""Watchers get the newest picture and never an older one."""

from __future__ import annotations

import asyncio

from services.load_monitor.broadcast import Broadcast
from tests.fakes.clock import FakeClock, settle
from tests.unit.services.load_monitor.rig import picture


async def test_broadcast_skips_but_never_goes_back() -> None:
    """A slow watcher gets the newest only; an older picture is refused."""
    clock = FakeClock()
    broadcast = Broadcast(clock)
    waiting = asyncio.create_task(broadcast.after(0))
    await settle()
    for version in (1, 2, 3):
        assert broadcast.offer(picture(version))
    assert not broadcast.offer(picture(2))
    found = await waiting
    assert found.version == 3
    assert await broadcast.after(2) is found
    clock.move(2.5)
    assert broadcast.age_s == 2.5
