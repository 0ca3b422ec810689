"""Chooses the state store a process uses."""

from __future__ import annotations

from services.common.clock import Clock
from services.common.state.memory_store import MemoryStateStore
from services.common.state.redis_store import RedisStateStore
from services.common.state.store import StateStore


def connect_store(redis_url: str, *, clock: Clock, timeout_s: float = 0.5) -> StateStore:
    """Returns the store at `redis_url`, or one in memory if the URL is empty.

    Connecting is left to the first call, so that a Redis that is away does not stop the start.

    Args:
        redis_url: `redis://host:port/db`; empty means none.
        clock: For the store in memory.
        timeout_s: Longest time a call to Redis may take, seconds.
    """
    if not redis_url:
        return MemoryStateStore(clock)
    return RedisStateStore(redis_url, timeout_s=timeout_s)
