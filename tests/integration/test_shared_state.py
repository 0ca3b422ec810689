"""What the monitors share: in a real Redis, and in memory held to the same behaviour."""

from __future__ import annotations

import pytest

from services.common.clock import SystemClock
from services.common.state import keys
from services.common.state.errors import VersionMismatchError
from services.common.state.redis_connection import RedisConnection
from services.common.state.shared_state import MemorySharedState, RedisSharedState, SharedState


@pytest.fixture(params=["redis", "memory"])
def store(request: pytest.FixtureRequest) -> SharedState:
    """Each of the stores, empty."""
    if request.param == "memory":
        return MemorySharedState(SystemClock())
    return RedisSharedState(request.getfixturevalue("redis_connection"))


async def test_system_state_is_never_replaced_by_an_older_one(store: SharedState) -> None:
    """A late publication of a former leader changes nothing."""
    assert await store.load_system_state() is None
    assert await store.publish_system_state(b"five", 5)
    assert not await store.publish_system_state(b"four", 4)
    assert await store.load_system_state() == b"five"


async def test_topology_is_saved_only_over_the_expected_version(store: SharedState) -> None:
    """Two writers cannot both win."""
    assert await store.load_topology() is None
    await store.save_topology(b"one", 1, expected_version=0)
    with pytest.raises(VersionMismatchError, match="expected 0, found 1"):
        await store.save_topology(b"other", 1, expected_version=0)
    await store.save_topology(b"two", 2, expected_version=1)
    assert await store.load_topology() == (2, b"two")


async def test_targets_are_saved_only_over_the_expected_version(store: SharedState) -> None:
    """Beside the endpoint list, and not in its place."""
    await store.save_topology(b"list", 7, expected_version=0)
    assert await store.load_targets() is None
    await store.save_targets(b"one", 1, expected_version=0)
    with pytest.raises(VersionMismatchError):
        await store.save_targets(b"other", 1, expected_version=0)
    assert await store.load_targets() == (1, b"one")
    await store.set_aside_targets()
    assert await store.load_targets() is None
    assert await store.load_topology() == (7, b"list")


async def test_what_is_sent_again_after_a_lost_answer_is_stored(store: SharedState) -> None:
    """Else its sender would hear that others were quicker, of what it stored itself."""
    for _ in range(2):
        await store.save_topology(b"one", 1, expected_version=0)
    assert await store.load_topology() == (1, b"one")
    with pytest.raises(VersionMismatchError, match="expected 0, found 1"):
        await store.save_topology(b"one", 2, expected_version=0)


async def test_a_version_that_is_no_number_is_another_one(
    redis_connection: RedisConnection,
) -> None:
    """Whoever reads it next takes it out of the way."""
    await redis_connection.redis.hset(keys.TOPOLOGY, "version", "much")
    with pytest.raises(VersionMismatchError, match="expected 5, found 0"):
        await RedisSharedState(redis_connection).save_topology(b"six", 6, expected_version=5)


async def test_ratings_are_saved_only_over_the_expected_version(store: SharedState) -> None:
    """And can be taken out of the way; the state beside them stays."""
    assert await store.load_ratings() is None
    await store.save_ratings(b"one", 1, expected_version=0)
    with pytest.raises(VersionMismatchError):
        await store.save_ratings(b"other", 1, expected_version=0)
    assert await store.load_ratings() == (1, b"one")
    assert await store.load_system_state() is None
    await store.set_aside_ratings()
    assert await store.load_ratings() is None


async def test_reports_of_other_monitors_are_taken_once(store: SharedState) -> None:
    """The newest of each monitor is handed over, then forgotten."""
    assert await store.take_peer_reports() == []
    await store.put_peer_reports("m1", b"old")
    await store.put_peer_reports("m1", b"new")
    await store.put_peer_reports("m2", b"other")
    assert sorted(await store.take_peer_reports()) == [b"new", b"other"]
    assert await store.take_peer_reports() == []


async def test_only_one_owner_has_a_lease(store: SharedState) -> None:
    """A lease is taken, extended and released by its owner only."""
    assert await store.acquire_lease("publisher", "a", 10.0)
    assert await store.acquire_lease("publisher", "a", 10.0)
    assert not await store.acquire_lease("publisher", "b", 10.0)
    assert not await store.release_lease("publisher", "b")
    assert await store.release_lease("publisher", "a")
    assert await store.acquire_lease("publisher", "b", 10.0)


async def test_lease_ends_by_itself(store: SharedState) -> None:
    """An owner that died does not keep the lease."""
    assert await store.acquire_lease("publisher", "a", 0.001)
    while not await store.acquire_lease("publisher", "b", 10.0):
        pass
    assert not await store.acquire_lease("publisher", "a", 10.0)
