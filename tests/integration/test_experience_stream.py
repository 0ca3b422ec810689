"""The experience stream: in a real Redis, and in memory held to the same behaviour."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from services.common.clock import SystemClock
from services.common.state import keys
from services.common.state.experience_stream import (
    ExperienceStream,
    MemoryExperienceStream,
    RedisExperienceStream,
)
from services.common.state.redis_connection import DeadLetter, RedisConnection
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


async def _claim_all(store: ExperienceStream, count: int) -> list[bytes]:
    """Claims for as long as there is something, as a trainer does that comes back."""
    found: dict[bytes, None] = {}  # on a slow machine some are stale again meanwhile
    begin_s = time.monotonic()
    while claimed := await store.claim_stale(
        "trainer", "two", time.monotonic() - begin_s + 0.01, count
    ):
        found |= dict.fromkeys(entry.payload for entry in claimed)
    return list(found)


async def test_however_many_are_stale_all_can_be_claimed(store: ExperienceStream) -> None:
    """Those claimed just now lie before the rest, and Redis looks at so many at a time."""
    payloads = [b"%d" % number for number in range(120)]
    await store.append(payloads)
    assert len(await store.read("trainer", "one", 120, 0.0)) == 120
    await asyncio.sleep(0.02)
    assert await _claim_all(store, 3) == payloads


async def test_what_the_stream_has_dropped_hides_nothing_behind_it(
    redis_connection: RedisConnection,
) -> None:
    """Entries that were read and then dropped, as by a stream at its limit, are passed over."""
    store, redis = RedisExperienceStream(redis_connection), redis_connection.redis
    await store.append([b"%d" % number for number in range(40)])
    read = await store.read("trainer", "one", 40, 0.0)
    await redis.xdel(keys.EXPERIENCE_STREAM, *(entry.entry_id for entry in read[:30]))
    await asyncio.sleep(0.02)
    assert await _claim_all(store, 4) == [entry.payload for entry in read[30:]]


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


async def test_the_newest_entry_tells_where_to_read_on(store: ExperienceStream) -> None:
    """By the id that the store gave it; everything is behind that of an empty stream."""
    assert await store.newest_id() == "0-0"
    await store.append([b"a", b"b"])
    newest = await store.newest_id()
    assert await store.behind(newest, 10) == []
    await store.append([b"c"])
    assert [entry.payload for entry in await store.behind(newest, 10)] == [b"c"]


async def test_experience_stream_is_bounded(store: ExperienceStream) -> None:
    """Nobody reading does not fill the memory."""
    for _ in range(10):
        await store.append([b"x"] * 500)
    assert 1000 <= await store.count() <= 1200


async def test_an_entry_without_its_field_can_be_acknowledged(
    redis_connection: RedisConnection,
) -> None:
    """Else it would stand in the way of what is claimed, for ever."""
    store = RedisExperienceStream(redis_connection)
    await redis_connection.redis.xadd(keys.EXPERIENCE_STREAM, {"other": "field"})
    [entry] = await store.read("trainer", "one", 10, 0.0)
    assert entry.payload == b""
    assert await store.ack("trainer", [entry.entry_id]) == 1


async def test_a_stream_at_its_last_id_gives_way_to_a_new_one(
    redis_connection: RedisConnection,
) -> None:
    """Routers write on, trainers read on; what was there is kept aside."""
    store, redis = RedisExperienceStream(redis_connection), redis_connection.redis
    await store.append([b"a"])
    await store.read("trainer", "one", 10, 0.0)
    await redis.xadd(keys.EXPERIENCE_STREAM, {"e": "x"}, id=f"{2**64 - 1}-{2**64 - 1}")
    await store.append([b"b"])
    assert [each.payload for each in await store.read("trainer", "one", 10, 0.0)] == [b"b"]
    assert await redis.xlen(keys.aside(keys.EXPERIENCE_STREAM)) == 2


async def test_a_key_that_is_no_stream_gives_way_to_one(redis_connection: RedisConnection) -> None:
    """As everywhere in the store."""
    store, redis = RedisExperienceStream(redis_connection), redis_connection.redis
    await redis.set(keys.EXPERIENCE_STREAM, "garbage")
    await store.append([b"a"])
    assert [each.payload for each in await store.read("trainer", "one", 10, 0.0)] == [b"a"]


async def test_what_is_refused_is_kept_bounded(redis_connection: RedisConnection) -> None:
    """The newest entries, each up to its limit, with reason and size."""
    store, redis = RedisExperienceStream(redis_connection), redis_connection.redis
    letters = [DeadLetter(b"x" * 20_000, str(number)) for number in range(300)]
    last_id = f"{2**64 - 1}-{2**64 - 1}"
    await redis.xadd(keys.dead_letter("experience"), {"e": "x"}, id=last_id)
    for _ in range(4):
        await store.set_aside(letters)
    key = keys.dead_letter("experience")
    assert await redis.xlen(key) == keys.DEAD_LETTER_LIMIT
    found: Any = await redis.xrevrange(key, count=1)
    [(_, newest)] = found
    assert (newest[b"reason"], newest[b"bytes"]) == (b"299", b"20000")
    assert len(newest[b"payload"]) == keys.DEAD_LETTER_BYTES
