"""The policy registry: in a real Redis, and in memory held to the same behaviour."""

from __future__ import annotations

import asyncio

import pytest

from services.common.state import keys
from services.common.state.errors import StateUnavailableError, VersionMismatchError
from services.common.state.policy_store import (
    Activation,
    MemoryPolicyStore,
    NotedRollout,
    PolicyStore,
    RedisPolicyStore,
    StoredPolicy,
)
from services.common.state.redis_connection import RedisConnection
from tests.conftest import RedisServer


@pytest.fixture(params=["redis", "memory"])
def store(request: pytest.FixtureRequest) -> PolicyStore:
    """Each of the stores, empty."""
    if request.param == "memory":
        return MemoryPolicyStore(limit=5)
    return RedisPolicyStore(request.getfixturevalue("redis_connection"), limit=5)


async def test_policies_are_listed_newest_first_and_keep_their_snapshot(
    store: PolicyStore,
) -> None:
    """Replacing the info keeps order and snapshot."""
    await store.put(b"info-1", b"weights-1", "dqn", "1")
    await store.put(b"info-2", None, "dqn", "2")
    await store.put(b"info-1b", None, "dqn", "1")
    assert await store.policies() == [
        StoredPolicy("dqn", "2", b"info-2"),
        StoredPolicy("dqn", "1", b"info-1b"),
    ]
    assert await store.get("dqn", "1") == (b"info-1b", b"weights-1")
    assert await store.get("dqn", "2") == (b"info-2", None)
    assert await store.get("dqn", "3") is None


async def test_registry_is_bounded_but_keeps_what_a_rollback_needs(store: PolicyStore) -> None:
    """The oldest policies go, the active one and the one before it stay."""
    for number in range(3):
        await store.put(b"%d" % number, b"w", "dqn", str(number))
    await store.activate("dqn", "0")
    await store.activate("dqn", "1")
    for number in range(3, 10):
        await store.put(b"%d" % number, b"w", "dqn", str(number))
    assert [each.version for each in await store.policies()] == ["9", "8", "7", "1", "0"]
    assert await store.get("dqn", "2") is None


async def test_a_needed_policy_stays_however_old_it_is(store: PolicyStore) -> None:
    """Others give way in its place, and the bound holds."""
    needed = {("dqn", "0"), ("dqn", "2")}
    for number in range(10):
        await store.put(b"%d" % number, b"w", "dqn", str(number), needed)
    assert [each.version for each in await store.policies()] == ["9", "8", "7", "2", "0"]
    assert await store.get("dqn", "1") is None
    assert await store.get("dqn", "2") == (b"2", b"w")


async def test_activation_is_atomic_and_keeps_its_history(store: PolicyStore) -> None:
    """An activation against an old number is refused and changes nothing."""
    assert await store.active() is None
    assert await store.history() == []
    assert await store.activate("greedy", "", expected_activation=0) == 1
    assert await store.activate("dqn", "7", expected_activation=1) == 2
    with pytest.raises(VersionMismatchError) as caught:
        await store.activate("price", "", expected_activation=1)
    assert caught.value.found == 2
    assert await store.active() == Activation(2, "dqn", "7")
    assert await store.history() == [
        Activation(1, "greedy", ""),
        Activation(2, "dqn", "7"),
    ]


async def test_numbers_go_above_what_the_caller_knows(store: PolicyStore) -> None:
    """A trainer whose store was emptied goes on counting where it was."""
    assert await store.activate("greedy", "") == 1
    assert await store.activate("price", "", above=40) == 41


async def test_a_rollout_takes_the_place_of_what_was_read(store: PolicyStore) -> None:
    """Of two writers the second one is refused; who writes again what is there is not."""
    assert await store.rollout() is None
    assert await store.put_rollout(b"1", b"")
    assert await store.put_rollout(b"1", b"")
    assert not await store.put_rollout(b"2", b"")
    assert await store.put_rollout(b"2", b"1")
    assert await store.rollout() == b"2"


async def test_a_rollout_and_its_policy_are_stored_in_one_step(store: PolicyStore) -> None:
    """Both or neither; a policy that is not there is not made."""
    await store.put(b"info", b"weights", "dqn", "1")
    assert await store.put_rollout(b"1", b"", StoredPolicy("dqn", "1", b"rejected"))
    assert await store.get("dqn", "1") == (b"rejected", b"weights")
    assert not await store.put_rollout(b"2", b"other", StoredPolicy("dqn", "1", b"late"))
    assert await store.get("dqn", "1") == (b"rejected", b"weights")
    assert await store.put_rollout(b"2", b"1", StoredPolicy("dqn", "2", b"unknown"))
    assert await store.get("dqn", "2") is None


async def test_an_activation_is_stored_with_what_is_noted(store: PolicyStore) -> None:
    """Where it got another number, or the rollout has changed meanwhile, it is stored alone."""
    noted = NotedRollout(1, b"pinned 1", b"")
    assert await store.activate("price", "", 0, noted=noted) == 1
    assert await store.rollout() == b"pinned 1"
    noted = NotedRollout(7, b"pinned 7", b"pinned 1")
    assert await store.activate("price", "", 1, noted=noted) == 2
    assert await store.activate("price", "", 2, noted=NotedRollout(3, b"pinned 3", b"")) == 3
    assert await store.rollout() == b"pinned 1"
    with pytest.raises(VersionMismatchError):
        await store.activate("price", "", 2, noted=NotedRollout(4, b"pinned 4", b"pinned 1"))
    assert await store.rollout() == b"pinned 1"


async def test_a_broken_policy_leaves_the_registry(store: PolicyStore) -> None:
    """Its info and snapshot are gone, the others stay."""
    await store.put(b"info-1", b"weights-1", "dqn", "1")
    await store.put(b"info-2", b"weights-2", "dqn", "2")
    await store.set_aside("dqn", "1", b"info-1", "is broken")
    assert await store.get("dqn", "1") is None
    assert [each.version for each in await store.policies()] == ["2"]


async def test_a_policy_that_nobody_needs_is_taken_out(store: PolicyStore) -> None:
    """With its snapshot; one that is not there is taken out already."""
    await store.put(b"info-1", b"weights-1", "dqn", "1")
    await store.put(b"info-2", b"weights-2", "dqn", "2")
    for _ in range(2):
        await store.drop("dqn", "1")
        assert await store.get("dqn", "1") is None
        assert [each.version for each in await store.policies()] == ["2"]


async def test_the_snapshot_of_a_broken_policy_is_kept_aside(
    redis_connection: RedisConnection,
) -> None:
    """Its info may be all that was broken."""
    store = RedisPolicyStore(redis_connection)
    await store.put(b"info", b"weights", "dqn", "1")
    await store.set_aside("dqn", "1", b"info", "is broken")
    aside = keys.aside(keys.policy_snapshot("dqn", "1"))
    assert await redis_connection.redis.get(aside) == b"weights"


LARGEST = b"%d greedy@" % keys.LARGEST_VERSION


@pytest.mark.parametrize(
    "garbage",
    [b"", b"x", b"-1 greedy@", b"0 greedy@", b"7", b"7 nothing", b"99999999999999999999 greedy@",
     b"\xff\xff \xff", b"7 " + b"n" * 5_000 + b"@"],
)  # fmt: skip
async def test_garbage_in_the_history_is_set_aside(
    redis_connection: RedisConnection, garbage: bytes
) -> None:
    """What is no activation is neither followed nor counted from, and can be looked at."""
    store, redis = RedisPolicyStore(redis_connection), redis_connection.redis
    await store.activate("price", "")
    await redis.rpush(keys.ACTIVATION_HISTORY, garbage)
    assert await store.activate("greedy", "", expected_activation=1) == 2
    expected = [Activation(1, "price", ""), Activation(2, "greedy", "")]
    for _ in range(2):
        assert await store.history() == expected
    assert await redis.xlen(keys.dead_letter("activation")) == 1
    await store.put(b"info", b"weights", "dqn", "1")


async def test_numbers_at_their_end_start_anew(redis_connection: RedisConnection) -> None:
    """After the largest number comes 1, for activations and for places in the order."""
    store, redis = RedisPolicyStore(redis_connection), redis_connection.redis
    await redis.rpush(keys.ACTIVATION_HISTORY, LARGEST)
    assert await store.activate("price", "") == 1
    assert (await store.history())[-1] == Activation(1, "price", "")
    await store.put(b"1", b"w", "dqn", "1")
    for top in (float("inf"), 2.0**63, float("-inf")):
        await redis.zadd(keys.POLICY_ORDER, {"dqn@1": top})
        await store.put(b"2", b"w", "dqn", "2")
        assert [each.version for each in await store.policies()] == ["2", "1"]
        await store.set_aside("dqn", "2", b"2", "again")


@pytest.mark.parametrize(
    "key",
    [
        keys.POLICY_INFO,
        keys.POLICY_ORDER,
        keys.ACTIVATION_HISTORY,
        keys.policy_snapshot("dqn", "1"),
    ],
)
async def test_a_key_of_another_type_is_set_aside(
    redis_connection: RedisConnection, key: str
) -> None:
    """The registry works on, and what was there can be looked at."""
    store, redis = RedisPolicyStore(redis_connection), redis_connection.redis
    if key.startswith(keys.POLICY_SNAPSHOT_PREFIX):
        await redis.hset(key, "garbage", "1")
    else:
        await redis.set(key, "garbage")
    assert await store.get("dqn", "1") is None
    assert await store.policies() == []
    assert await store.history() == []
    await store.put(b"info", b"weights", "dqn", "1")
    assert await store.activate("dqn", "1") == 1
    assert await store.get("dqn", "1") == (b"info", b"weights")
    assert await redis.exists(keys.aside(key)) == 1


async def test_a_rollout_of_another_type_makes_no_second_activation(
    redis_connection: RedisConnection,
) -> None:
    """It is set aside before anything is written."""
    store, redis = RedisPolicyStore(redis_connection), redis_connection.redis
    await redis.hset(keys.POLICY_ROLLOUT, "garbage", "1")
    noted = NotedRollout(1, b"pinned", b"")
    assert await store.activate("price", "", 0, noted=noted) == 1
    assert await store.history() == [Activation(1, "price", "")]
    assert await store.rollout() == b"pinned"
    assert await redis.exists(keys.aside(keys.POLICY_ROLLOUT)) == 1


@pytest.mark.parametrize("identifier", [b"\xff@1", b"nameless", b"dqn@9"])
async def test_places_in_the_order_that_are_nobodys_are_set_aside(
    redis_connection: RedisConnection, identifier: bytes
) -> None:
    """They hide no policy, and are found once."""
    store, redis = RedisPolicyStore(redis_connection, limit=1), redis_connection.redis
    await store.put(b"info", b"weights", "dqn", "1")
    await redis.zadd(keys.POLICY_ORDER, {identifier: 99.0})
    if identifier != b"dqn@9":
        await redis.hset(keys.POLICY_INFO, identifier, b"info")
    await store.policies()
    for _ in range(2):
        assert [each.version for each in await store.policies()] == ["1"]
    assert await redis.xlen(keys.dead_letter("policy")) == 1


async def test_a_lost_answer_is_no_second_activation(
    redis_connection: RedisConnection, redis_server: RedisServer
) -> None:
    """Sent again, it would seem that others were quicker: who repeats a rollback then goes on."""
    is_cut = False

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal is_cut
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", redis_server.port)
        while request := await reader.read(65_536):
            up_writer.write(request)
            answer = await up_reader.read(65_536)
            if is_cut and b"EVALSHA" in request:
                is_cut = False
                break
            writer.write(answer)
        up_writer.close()
        writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = RedisConnection(f"redis://127.0.0.1:{port}/0", timeout_s=10.0)
    try:
        store, direct = RedisPolicyStore(connection), RedisPolicyStore(redis_connection)
        assert await store.activate("price", "", 0) == 1  # Redis knows the script by now
        is_cut = True
        with pytest.raises(StateUnavailableError):
            await store.activate("dqn", "1", 1)
        assert await direct.history() == [Activation(1, "price", ""), Activation(2, "dqn", "1")]
        assert await store.activate("greedy", "", 2) == 3
    finally:
        await connection.close()
        server.close()
