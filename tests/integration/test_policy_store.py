"""The policy registry: in a real Redis, and in memory held to the same behaviour."""

from __future__ import annotations

import pytest

from services.common.state.errors import VersionMismatchError
from services.common.state.policy_store import (
    Activation,
    MemoryPolicyStore,
    PolicyStore,
    RedisPolicyStore,
)


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
    assert await store.infos() == [b"info-2", b"info-1b"]
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
    assert await store.infos() == [b"9", b"8", b"7", b"1", b"0"]
    assert await store.get("dqn", "2") is None


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
