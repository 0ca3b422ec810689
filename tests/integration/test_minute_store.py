"""Minutes of the mesh's books: in a real Redis, and in memory held to the same behaviour."""

from __future__ import annotations

import pytest

from services.common.state import keys
from services.common.state.minute_store import MemoryMinuteStore, MinuteStore, RedisMinuteStore


@pytest.fixture(params=["redis", "memory"])
def store(request: pytest.FixtureRequest) -> MinuteStore:
    """Each of the stores, empty."""
    if request.param == "memory":
        return MemoryMinuteStore()
    return RedisMinuteStore(request.getfixturevalue("redis_connection"))


async def test_minutes_are_read_in_order_of_time(store: MinuteStore) -> None:
    """Of each kind for itself; two writers of one minute both count, whatever they wrote."""
    for minute_s, payload in ((120, b"b"), (60, b"a:\xff"), (180, b"a:\xff"), (120, b"c")):
        await store.put(keys.MINUTE_BOOKS, minute_s, payload)
    await store.put(keys.MINUTE_HINDSIGHT, 60, b"h")
    read = await store.read(keys.MINUTE_BOOKS, 60.0, 180.0, 10)
    assert read == [(60, b"a:\xff"), (120, b"b"), (120, b"c")]
    assert await store.read(keys.MINUTE_BOOKS, 61.0, 1e11, 2) == [(120, b"b"), (120, b"c")]
    assert await store.read(keys.MINUTE_HINDSIGHT, 0.0, 1e11, 10) == [(60, b"h")]


async def test_the_oldest_minutes_give_way(
    store: MinuteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a limit, and what a wrong clock wrote does not empty the rest."""
    monkeypatch.setattr(keys, "MINUTES_LIMIT", 3)
    for minute_s in (60, 120, 10**12, 180):
        await store.put(keys.MINUTE_BOOKS, minute_s, b"x")
    read = await store.read(keys.MINUTE_BOOKS, 0.0, 1e11, 10)
    assert [minute_s for minute_s, _ in read] == [120, 180]
