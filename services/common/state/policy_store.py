"""The policy registry as it is stored: policies, their snapshots, and the activations."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, NamedTuple, Protocol, cast

from services.common.state import keys, scripts
from services.common.state.errors import VersionMismatchError
from services.common.state.redis_connection import RedisConnection


class Activation(NamedTuple):
    """One activation of a policy.

    Args:
        activation: Its number, growing by 1 with each.
        name: Name of the policy.
        version: Version of the policy; empty for policies without versions.
    """

    activation: int
    name: str
    version: str


class PolicyStore(Protocol):
    """The store; a method that cannot answer raises StateUnavailableError within its timeout."""

    async def put(self, info: bytes, snapshot: bytes | None, name: str, version: str) -> None:
        """Stores a policy, or replaces its info; a snapshot of None leaves a stored one as it is.

        The oldest policies beyond the registry's bound are dropped, but neither the active one nor
        the one a rollback would go to.
        """
        ...

    async def infos(self) -> list[bytes]:
        """Returns the info of every policy, newest publication first."""
        ...

    async def get(self, name: str, version: str) -> tuple[bytes, bytes | None] | None:
        """Returns info and snapshot of a policy, None if unknown."""
        ...

    async def activate(
        self, name: str, version: str, expected_activation: int | None = None
    ) -> int:
        """Makes a policy the active one and returns the number of the activation.

        Raises:
            VersionMismatchError: The present activation is not `expected_activation` (0: none yet).
        """
        ...

    async def active(self) -> Activation | None:
        """Returns the present activation, None if there never was one."""
        ...

    async def history(self) -> list[Activation]:
        """Returns the kept activations, oldest first; the last one is the present one."""
        ...


class RedisPolicyStore:
    """A PolicyStore in Redis.

    Args:
        connection: The Redis.
        limit: Policies it keeps.
    """

    def __init__(
        self, connection: RedisConnection, *, limit: int = keys.POLICY_COUNT_LIMIT
    ) -> None:
        self._redis, self._call = connection.redis, connection.call
        self._limit = limit
        self._put = self._redis.register_script(scripts.PUT_POLICY)
        self._activate = self._redis.register_script(scripts.ACTIVATE)

    async def put(self, info: bytes, snapshot: bytes | None, name: str, version: str) -> None:
        """Stores a policy, or replaces its info."""
        names = [
            keys.POLICY_INFO, keys.POLICY_ORDER, keys.PUBLICATION_COUNTER, keys.ACTIVATION_HISTORY,
        ]  # fmt: skip
        arguments = (
            keys.policy_id(name, version), info, int(snapshot is not None), snapshot or b"",
            keys.POLICY_SNAPSHOT_PREFIX, self._limit,
        )  # fmt: skip
        await self._call(lambda: self._put(names, arguments))

    async def infos(self) -> list[bytes]:
        """Returns the info of every policy, newest publication first."""
        ids = await self._call(lambda: self._redis.zrevrange(keys.POLICY_ORDER, 0, -1))
        if not ids:
            return []
        infos = await self._call(lambda: self._redis.hmget(keys.POLICY_INFO, ids))
        return [info for info in infos if info is not None]

    async def get(self, name: str, version: str) -> tuple[bytes, bytes | None] | None:
        """Returns info and snapshot of a policy."""

        def both() -> Awaitable[Any]:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hget(keys.POLICY_INFO, keys.policy_id(name, version))
            pipeline.get(keys.policy_snapshot(name, version))
            return cast("Awaitable[Any]", pipeline.execute())

        info, snapshot = await self._call(both)
        return None if info is None else (info, snapshot)

    async def activate(
        self, name: str, version: str, expected_activation: int | None = None
    ) -> int:
        """Makes a policy active; VersionMismatchError if another came in between."""
        expected = "" if expected_activation is None else expected_activation
        names = [keys.ACTIVATION_COUNTER, keys.ACTIVATION_HISTORY]
        arguments = (keys.policy_id(name, version), expected, keys.ACTIVATION_HISTORY_LIMIT)
        done, activation = await self._call(lambda: self._activate(names, arguments))
        if not done:
            raise VersionMismatchError("activation", expected_activation or 0, int(activation))
        return int(activation)

    async def active(self) -> Activation | None:
        """Returns the present activation."""
        entry = await self._call(lambda: self._redis.lindex(keys.ACTIVATION_HISTORY, -1))
        return None if entry is None else _parse_activation(cast("bytes", entry))

    async def history(self) -> list[Activation]:
        """Returns the kept activations, oldest first."""
        entries = await self._call(lambda: self._redis.lrange(keys.ACTIVATION_HISTORY, 0, -1))
        return [_parse_activation(entry) for entry in entries]


def _parse_activation(entry: bytes) -> Activation:
    number, _, identifier = entry.decode("utf-8").partition(" ")
    name, _, version = identifier.partition("@")
    return Activation(int(number), name, version)


class MemoryPolicyStore:
    """A PolicyStore of one process, gone with it.

    Args:
        limit: Policies it keeps.
    """

    def __init__(self, *, limit: int = keys.POLICY_COUNT_LIMIT) -> None:
        self._limit = limit
        self._policies: dict[tuple[str, str], tuple[bytes, bytes | None]] = {}
        self._activations: list[Activation] = []

    async def put(self, info: bytes, snapshot: bytes | None, name: str, version: str) -> None:
        """Stores a policy."""
        kept = self._policies.get((name, version), (b"", None))[1]
        self._policies[(name, version)] = (info, kept if snapshot is None else snapshot)
        needed = {(a.name, a.version) for a in self._activations[-2:]} | {(name, version)}
        droppable = [key for key in self._policies if key not in needed]
        for key in droppable[: max(len(self._policies) - self._limit, 0)]:
            del self._policies[key]

    async def infos(self) -> list[bytes]:
        """Returns the infos, newest first."""
        return [info for info, _ in reversed(self._policies.values())]

    async def get(self, name: str, version: str) -> tuple[bytes, bytes | None] | None:
        """Returns a policy."""
        return self._policies.get((name, version))

    async def activate(
        self, name: str, version: str, expected_activation: int | None = None
    ) -> int:
        """Activates a policy."""
        found = self._activations[-1].activation if self._activations else 0
        if expected_activation is not None and expected_activation != found:
            raise VersionMismatchError("activation", expected_activation, found)
        self._activations.append(Activation(found + 1, name, version))
        del self._activations[: -keys.ACTIVATION_HISTORY_LIMIT]
        return found + 1

    async def active(self) -> Activation | None:
        """Returns the present activation."""
        return self._activations[-1] if self._activations else None

    async def history(self) -> list[Activation]:
        """Returns the kept activations, oldest first."""
        return list(self._activations)
