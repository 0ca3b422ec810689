"""The state stores: a real Redis, and the one in memory held to the same behaviour."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from services.common.clock import SystemClock
from services.common.state.memory_store import MemoryStateStore
from services.common.state.redis_store import RedisStateStore
from services.common.state.store import (
    Activation,
    StateStore,
    StateUnavailableError,
    VersionMismatchError,
)
from tests.conftest import RedisServer


@pytest.fixture
async def redis_store(redis_server: RedisServer) -> AsyncIterator[RedisStateStore]:
    """A store on an empty Redis."""
    store = RedisStateStore(redis_server.url, policy_limit=5, experience_limit=1000)
    yield store
    await store.close()


@pytest.fixture(params=["redis", "memory"])
def store(request: pytest.FixtureRequest) -> StateStore:
    """Each of the stores, empty."""
    if request.param == "memory":
        return MemoryStateStore(SystemClock(), policy_limit=5, experience_limit=1000)
    found: StateStore = request.getfixturevalue("redis_store")
    return found


async def test_system_state_is_never_replaced_by_an_older_one(store: StateStore) -> None:
    """A late publication of a former leader changes nothing."""
    assert await store.load_system_state() is None
    assert await store.publish_system_state(b"five", 5)
    assert not await store.publish_system_state(b"four", 4)
    assert await store.load_system_state() == b"five"


async def test_topology_is_saved_only_over_the_expected_version(store: StateStore) -> None:
    """Two writers cannot both win."""
    assert await store.load_topology() is None
    await store.save_topology(b"one", 1, expected_version=0)
    with pytest.raises(VersionMismatchError, match="expected 0, found 1"):
        await store.save_topology(b"other", 1, expected_version=0)
    await store.save_topology(b"two", 2, expected_version=1)
    assert await store.load_topology() == (2, b"two")


async def test_reports_of_other_monitors_are_taken_once(store: StateStore) -> None:
    """The newest of each monitor is handed over, then forgotten."""
    assert await store.take_peer_reports() == []
    await store.put_peer_reports("m1", b"old")
    await store.put_peer_reports("m1", b"new")
    await store.put_peer_reports("m2", b"other")
    assert sorted(await store.take_peer_reports()) == [b"new", b"other"]
    assert await store.take_peer_reports() == []


async def test_only_one_owner_has_a_lease(store: StateStore) -> None:
    """A lease is taken, renewed and released by its owner only."""
    assert await store.acquire_lease("publisher", "a", 10.0)
    assert await store.acquire_lease("publisher", "a", 10.0)
    assert not await store.acquire_lease("publisher", "b", 10.0)
    assert not await store.renew_lease("publisher", "b", 10.0)
    assert not await store.release_lease("publisher", "b")
    assert await store.renew_lease("publisher", "a", 10.0)
    assert await store.release_lease("publisher", "a")
    assert await store.acquire_lease("publisher", "b", 10.0)


async def test_lease_ends_by_itself(store: StateStore) -> None:
    """An owner that died does not keep the lease."""
    assert await store.acquire_lease("publisher", "a", 0.001)
    while not await store.acquire_lease("publisher", "b", 10.0):
        pass
    assert not await store.renew_lease("publisher", "a", 10.0)


async def test_policies_are_listed_newest_first_and_keep_their_snapshot(
    store: StateStore,
) -> None:
    """Replacing the info keeps order and snapshot."""
    await store.put_policy(b"info-1", b"weights-1", "dqn", "1")
    await store.put_policy(b"info-2", None, "dqn", "2")
    await store.put_policy(b"info-1b", None, "dqn", "1")
    assert await store.list_policies() == [b"info-2", b"info-1b"]
    assert await store.get_policy("dqn", "1") == (b"info-1b", b"weights-1")
    assert await store.get_policy("dqn", "2") == (b"info-2", None)
    assert await store.get_policy("dqn", "3") is None


async def test_registry_is_bounded_but_keeps_what_a_rollback_needs(store: StateStore) -> None:
    """The oldest policies go, the active one and the one before it stay."""
    for number in range(3):
        await store.put_policy(b"%d" % number, b"w", "dqn", str(number))
    await store.activate("dqn", "0")
    await store.activate("dqn", "1")
    for number in range(3, 10):
        await store.put_policy(b"%d" % number, b"w", "dqn", str(number))
    assert await store.list_policies() == [b"9", b"8", b"7", b"1", b"0"]
    assert await store.get_policy("dqn", "2") is None


async def test_activation_is_atomic_and_keeps_its_history(store: StateStore) -> None:
    """An activation against an old number is refused and changes nothing."""
    assert await store.active() is None
    assert await store.activation_history() == []
    assert await store.activate("greedy", "", expected_activation=0) == 1
    assert await store.activate("dqn", "7", expected_activation=1) == 2
    with pytest.raises(VersionMismatchError) as caught:
        await store.activate("price", "", expected_activation=1)
    assert caught.value.found == 2
    assert await store.active() == Activation(2, "dqn", "7")
    assert await store.activation_history() == [
        Activation(1, "greedy", ""),
        Activation(2, "dqn", "7"),
    ]


async def test_experience_is_read_once_per_group_until_acknowledged(
    store: StateStore,
) -> None:
    """Entries arrive in order, once, and can be claimed by another consumer until acknowledged."""
    await store.append_experience([b"a", b"b", b"c"])
    first = await store.read_experience("trainer", "one", 2, 0.0)
    assert [entry.payload for entry in first] == [b"a", b"b"]
    second = await store.read_experience("trainer", "one", 2, 0.0)
    assert [entry.payload for entry in second] == [b"c"]
    assert await store.read_experience("trainer", "one", 2, 0.01) == []
    assert await store.ack_experience("trainer", [first[0].entry_id]) == 1
    claimed = await store.claim_stale_experience("trainer", "two", 0.0, 10)
    assert [entry.payload for entry in claimed] == [b"b", b"c"]
    other_group = await store.read_experience("other", "one", 10, 0.0)
    assert [entry.payload for entry in other_group] == [b"a", b"b", b"c"]


async def test_reading_survives_an_emptied_redis(
    redis_store: RedisStateStore, redis_server: RedisServer
) -> None:
    """The consumer group is made again when it is gone."""
    await redis_store.append_experience([b"a"])
    assert len(await redis_store.read_experience("trainer", "one", 10, 0.0)) == 1
    redis_server.flush()
    await redis_store.append_experience([b"b"])
    entries = await redis_store.read_experience("trainer", "one", 10, 0.0)
    assert [entry.payload for entry in entries] == [b"b"]


async def test_experience_stream_is_bounded(store: StateStore) -> None:
    """Nobody reading does not fill the memory."""
    for _ in range(10):
        await store.append_experience([b"x"] * 500)
    assert 1000 <= await store.experience_count() <= 1200


async def test_redis_that_stops_and_returns(
    redis_store: RedisStateStore, redis_server: RedisServer
) -> None:
    """Calls fail with StateUnavailableError while it is away and work when it is back."""
    await redis_store.ping()
    redis_server.stop()
    try:
        for call in (redis_store.ping, redis_store.load_system_state, redis_store.active):
            with pytest.raises(StateUnavailableError):
                await call()
    finally:
        redis_server.start()
    await redis_store.ping()
    assert await redis_store.acquire_lease("publisher", "a", 1.0)


async def test_a_server_that_never_answers_costs_only_the_timeout(
    free_port: Callable[[], int],
) -> None:
    """A silent peer is a StateUnavailableError, not a hang."""
    import asyncio

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = RedisStateStore(f"redis://127.0.0.1:{port}/0", timeout_s=0.1)
    with pytest.raises(StateUnavailableError, match=r"within 0\.1 s"):
        await store.ping()
    await store.close()
    server.close()
