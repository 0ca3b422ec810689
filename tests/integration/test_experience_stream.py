"""The experience stream: in a real Redis, and in memory held to the same behaviour."""

from __future__ import annotations

import pytest

from services.common.clock import SystemClock
from services.common.state.experience_stream import (
    ExperienceStream,
    MemoryExperienceStream,
    RedisExperienceStream,
)
from services.common.state.redis_connection import RedisConnection
from tests.conftest import RedisServer


@pytest.fixture(params=["redis", "memory"])
def store(request: pytest.FixtureRequest) -> ExperienceStream:
    """Each of the stores, empty."""
    if request.param == "memory":
        return MemoryExperienceStream(SystemClock(), limit=1000)
    return RedisExperienceStream(request.getfixturevalue("redis_connection"), limit=1000)


async def test_experience_is_read_once_per_group_until_acknowledged(
    store: ExperienceStream,
) -> None:
    """Entries arrive in order, once, and can be claimed by another consumer until acknowledged."""
    await store.append([b"a", b"b", b"c"])
    first = await store.read("trainer", "one", 2, 0.0)
    assert [entry.payload for entry in first] == [b"a", b"b"]
    second = await store.read("trainer", "one", 2, 0.0)
    assert [entry.payload for entry in second] == [b"c"]
    assert await store.read("trainer", "one", 2, 0.01) == []
    assert await store.ack("trainer", [first[0].entry_id]) == 1
    claimed = await store.claim_stale("trainer", "two", 0.0, 10)
    assert [entry.payload for entry in claimed] == [b"b", b"c"]
    other_group = await store.read("other", "one", 10, 0.0)
    assert [entry.payload for entry in other_group] == [b"a", b"b", b"c"]


async def test_reading_survives_an_emptied_redis(
    redis_connection: RedisConnection, redis_server: RedisServer
) -> None:
    """The consumer group is made again when it is gone."""
    store = RedisExperienceStream(redis_connection)
    await store.append([b"a"])
    assert len(await store.read("trainer", "one", 10, 0.0)) == 1
    redis_server.flush()
    await store.append([b"b"])
    entries = await store.read("trainer", "one", 10, 0.0)
    assert [entry.payload for entry in entries] == [b"b"]


async def test_experience_stream_is_bounded(store: ExperienceStream) -> None:
    """Nobody reading does not fill the memory."""
    for _ in range(10):
        await store.append([b"x"] * 500)
    assert 1000 <= await store.count() <= 1200
