"""The policy registry as it is stored: policies, their snapshots, and the activations."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Collection
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

from services.common.state import keys, scripts
from services.common.state.errors import VersionMismatchError
from services.common.state.redis_connection import DeadLetter, RedisConnection, milliseconds

_KIND_POLICY = "policy"
_KIND_ACTIVATION = "activation"
_LONGEST_ENTRY = 200

PolicyKey = tuple[str, str]
"""Name and version of a policy."""


class Activation(NamedTuple):
    """One activation of a policy.

    Args:
        activation: Its number, above 0; it grows with each, and starts anew after the largest.
        name: Name of the policy; empty: from here on nothing is promoted.
        version: Version of the policy; empty for policies without versions.
    """

    activation: int
    name: str
    version: str


class StoredPolicy(NamedTuple):
    """A policy under the name and version it is stored by.

    Args:
        name: Name of the policy.
        version: Its version.
        info: What is known about it; nobody has read it yet.
    """

    name: str
    version: str
    info: bytes


class NotedRollout(NamedTuple):
    """What is stored of the rollout in one step with an activation.

    Args:
        activation: The number that the activation must get, or nothing is stored of it.
        state: What is stored.
        replaces: What must stand there, or nothing is stored either; empty: nothing.
    """

    activation: int
    state: bytes
    replaces: bytes


class PolicyStore(Protocol):
    """The store; a method that cannot answer raises StateUnavailableError within its timeout."""

    async def put(
        self,
        info: bytes,
        snapshot: bytes | None,
        name: str,
        version: str,
        needed: Collection[PolicyKey] = (),
    ) -> None:
        """Stores a policy, or replaces its info; a snapshot of None leaves a stored one as it is.

        The oldest policies beyond the registry's bound are dropped, but neither the active one nor
        the one before it, nor those that are `needed`.
        """
        ...

    async def policies(self) -> list[StoredPolicy]:
        """Returns every policy, newest publication first."""
        ...

    async def get(self, name: str, version: str) -> tuple[bytes, bytes | None] | None:
        """Returns info and snapshot of a policy, None if unknown."""
        ...

    async def set_aside(self, name: str, version: str, payload: bytes, reason: str) -> None:
        """Takes a policy that turned out broken out of the registry.

        `payload`, what was broken of it, is kept aside, and so is its snapshot.
        """
        ...

    async def drop(self, name: str, version: str) -> None:
        """Takes a policy that nobody needs out of the registry."""
        ...

    async def activate(
        self,
        name: str,
        version: str,
        expected_activation: int | None = None,
        above: int = 0,
        noted: NotedRollout | None = None,
    ) -> int:
        """Makes a policy the active one and returns the number of the activation.

        The number is above the present one, and above `above`. Either both the activation and what
        is `noted` are stored, or the activation alone where that does not fit.

        Raises:
            VersionMismatchError: The present activation is not `expected_activation` (0: none yet).
        """
        ...

    async def active(self) -> Activation | None:
        """Returns the present activation, None if there never was one."""
        ...

    async def history(self) -> list[Activation]:
        """Returns the kept activations, oldest first; the last one is the present one.

        What is no activation is set aside.
        """
        ...

    async def put_rollout(
        self, state: bytes, replaces: bytes, policy: StoredPolicy | None = None
    ) -> bool:
        """Stores what is known of the rollout under way, in place of what was.

        In the same step it replaces the info of a policy that is there.

        Returns:
            False, having stored nothing, if neither `replaces` (empty: nothing) nor `state` itself
            stands there.
        """
        ...

    async def rollout(self) -> bytes | None:
        """Returns what was stored of a rollout last, None if nothing ever was."""
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
        self._set_aside = connection.set_aside
        self._limit = limit
        self._put = self._redis.register_script(scripts.PUT_POLICY)
        self._drop = self._redis.register_script(scripts.DROP_POLICY)
        # Sent again, it would take its own first time for somebody else's activation.
        self._activate = connection.once.register_script(scripts.ACTIVATE)
        self._put_rollout = self._redis.register_script(scripts.PUT_ROLLOUT)

    async def put(
        self,
        info: bytes,
        snapshot: bytes | None,
        name: str,
        version: str,
        needed: Collection[PolicyKey] = (),
    ) -> None:
        """Stores a policy, or replaces its info."""
        names = [keys.POLICY_INFO, keys.POLICY_ORDER, keys.ACTIVATION_HISTORY]
        arguments: list[bytes | str | int] = [
            keys.policy_id(name, version), info, int(snapshot is not None), snapshot or b"",
            keys.POLICY_SNAPSHOT_PREFIX, self._limit, *(keys.policy_id(*each) for each in needed),
        ]  # fmt: skip
        await self._call(lambda: self._put(names, arguments))

    async def policies(self) -> list[StoredPolicy]:
        """Returns every policy, newest publication first."""
        ids = await self._call(lambda: self._redis.zrevrange(keys.POLICY_ORDER, 0, self._limit - 1))
        if not ids:
            return []
        infos = await self._call(lambda: self._redis.hmget(keys.POLICY_INFO, ids))
        found: list[StoredPolicy] = []
        broken: list[DeadLetter] = []
        nobodys: list[bytes] = []
        for identifier, info in zip(ids, infos, strict=True):
            name, version = _parse_id(identifier)
            if info is not None and keys.policy_id(name, version).encode() == identifier:
                found.append(StoredPolicy(name, version, info))
                continue
            # A place in the order without a policy, or under a name that nobody can ask for.
            nobodys.append(identifier)
            broken.append(DeadLetter(identifier + b"\0" + (info or b""), "is no policy"))
        if nobodys:
            await self._set_aside(_KIND_POLICY, broken)
            await self._call(partial(self._redis.zrem, keys.POLICY_ORDER, *nobodys))
            await self._call(partial(self._redis.hdel, keys.POLICY_INFO, *nobodys))
        return found

    async def get(self, name: str, version: str) -> tuple[bytes, bytes | None] | None:
        """Returns info and snapshot of a policy."""

        def both() -> Awaitable[Any]:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hget(keys.POLICY_INFO, keys.policy_id(name, version))
            pipeline.get(keys.policy_snapshot(name, version))
            return cast("Awaitable[Any]", pipeline.execute())

        snapshot_key = {keys.policy_snapshot(name, version): "string"}
        info, snapshot = await self._call(both, types=snapshot_key)
        return None if info is None else (info, snapshot)

    async def set_aside(self, name: str, version: str, payload: bytes, reason: str) -> None:
        """Takes a broken policy out, keeping `payload` aside."""
        await self._set_aside(_KIND_POLICY, [DeadLetter(payload, reason)])
        snapshot = keys.policy_snapshot(name, version)
        names = [keys.POLICY_INFO, keys.POLICY_ORDER, snapshot]
        kept_ms = milliseconds(keys.SET_ASIDE_TTL_S)
        arguments = (keys.policy_id(name, version), keys.aside(snapshot), kept_ms)
        await self._call(lambda: self._drop(names, arguments))

    async def drop(self, name: str, version: str) -> None:
        """Takes a policy out."""

        def all_of_it() -> Awaitable[Any]:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.zrem(keys.POLICY_ORDER, keys.policy_id(name, version))
            pipeline.hdel(keys.POLICY_INFO, keys.policy_id(name, version))
            pipeline.delete(keys.policy_snapshot(name, version))
            return cast("Awaitable[Any]", pipeline.execute())

        await self._call(all_of_it)

    async def activate(
        self,
        name: str,
        version: str,
        expected_activation: int | None = None,
        above: int = 0,
        noted: NotedRollout | None = None,
    ) -> int:
        """Makes a policy active; VersionMismatchError if another came in between."""
        await self.history()  # sets aside what must not be counted from
        expected = "" if expected_activation is None else expected_activation
        arguments: list[bytes | str | int] = [
            keys.policy_id(name, version), expected, above, keys.ACTIVATION_HISTORY_LIMIT,
            keys.LARGEST_VERSION, *(noted or ("", "", "")),
        ]  # fmt: skip
        names = [keys.ACTIVATION_HISTORY, keys.POLICY_ROLLOUT]
        done, activation = await self._call(lambda: self._activate(names, arguments))
        if not done:
            raise VersionMismatchError("activation", expected_activation or 0, int(activation))
        return int(activation)

    async def active(self) -> Activation | None:
        """Returns the present activation."""
        history = await self.history()
        return history[-1] if history else None

    async def history(self) -> list[Activation]:
        """Returns the kept activations, oldest first; sets aside what is none."""
        entries = await self._call(
            lambda: self._redis.lrange(keys.ACTIVATION_HISTORY, -keys.ACTIVATION_HISTORY_LIMIT, -1)
        )
        found = [(entry, _parse_activation(entry)) for entry in entries]
        broken = [entry for entry, activation in found if activation is None]
        if broken:
            letters = [DeadLetter(entry, "is no activation") for entry in broken]
            await self._set_aside(_KIND_ACTIVATION, letters)
            for entry in broken:
                await self._call(partial(self._redis.lrem, keys.ACTIVATION_HISTORY, 0, entry))
        return [activation for _, activation in found if activation is not None]

    async def put_rollout(
        self, state: bytes, replaces: bytes, policy: StoredPolicy | None = None
    ) -> bool:
        """Stores what is known of the rollout under way, unless somebody else has."""
        of_policy: tuple[bytes | str, ...] = ("", "")
        if policy is not None:
            of_policy = keys.policy_id(policy.name, policy.version), policy.info
        names = [keys.POLICY_ROLLOUT, keys.POLICY_INFO]
        arguments = (state, replaces, *of_policy)
        return bool(await self._call(lambda: self._put_rollout(names, arguments)))

    async def rollout(self) -> bytes | None:
        """Returns what was stored of a rollout last."""
        state: bytes | None = await self._call(lambda: self._redis.get(keys.POLICY_ROLLOUT))
        return state


def _parse_id(identifier: bytes) -> tuple[str, str]:
    name, _, version = identifier.decode("utf-8", "replace").partition("@")
    return name, version


def _parse_activation(entry: bytes) -> Activation | None:
    """Returns an entry of the history, None if it is none."""
    number, _, identifier = entry.partition(b" ")
    if len(entry) > _LONGEST_ENTRY or not number.isdigit() or b"@" not in identifier:
        return None
    if not 0 < int(number) <= keys.LARGEST_VERSION or not identifier.isascii():
        return None
    return Activation(int(number), *_parse_id(identifier))


class MemoryPolicyStore:
    """A PolicyStore of one process, gone with it.

    Args:
        limit: Policies it keeps.
    """

    def __init__(self, *, limit: int = keys.POLICY_COUNT_LIMIT) -> None:
        self._limit = limit
        self._policies: dict[tuple[str, str], tuple[bytes, bytes | None]] = {}
        self._activations: list[Activation] = []
        self._rollout: bytes | None = None
        self.dead_letters: deque[DeadLetter] = deque(maxlen=keys.DEAD_LETTER_LIMIT)

    async def put(
        self,
        info: bytes,
        snapshot: bytes | None,
        name: str,
        version: str,
        needed: Collection[PolicyKey] = (),
    ) -> None:
        """Stores a policy."""
        kept = self._policies.get((name, version), (b"", None))[1]
        self._policies[(name, version)] = (info, kept if snapshot is None else snapshot)
        keep = {(a.name, a.version) for a in self._activations[-2:]} | {(name, version), *needed}
        droppable = [key for key in self._policies if key not in keep]
        for key in droppable[: max(len(self._policies) - self._limit, 0)]:
            del self._policies[key]

    async def policies(self) -> list[StoredPolicy]:
        """Returns the policies, newest first."""
        return [StoredPolicy(*key, info) for key, (info, _) in reversed(self._policies.items())]

    async def get(self, name: str, version: str) -> tuple[bytes, bytes | None] | None:
        """Returns a policy."""
        return self._policies.get((name, version))

    async def set_aside(self, name: str, version: str, payload: bytes, reason: str) -> None:
        """Takes a broken policy out."""
        self.dead_letters.append(DeadLetter(payload, reason))
        self._policies.pop((name, version), None)

    async def drop(self, name: str, version: str) -> None:
        """Takes a policy out."""
        self._policies.pop((name, version), None)

    async def activate(
        self,
        name: str,
        version: str,
        expected_activation: int | None = None,
        above: int = 0,
        noted: NotedRollout | None = None,
    ) -> int:
        """Activates a policy."""
        found = self._activations[-1].activation if self._activations else 0
        if expected_activation is not None and expected_activation != found:
            raise VersionMismatchError("activation", expected_activation, found)
        number = max(found, above) + 1
        self._activations.append(Activation(number, name, version))
        del self._activations[: -keys.ACTIVATION_HISTORY_LIMIT]
        kept = self._rollout or b""
        if noted is not None and (noted.activation, noted.replaces) == (number, kept):
            self._rollout = noted.state
        return number

    async def active(self) -> Activation | None:
        """Returns the present activation."""
        return self._activations[-1] if self._activations else None

    async def history(self) -> list[Activation]:
        """Returns the kept activations, oldest first."""
        return list(self._activations)

    async def put_rollout(
        self, state: bytes, replaces: bytes, policy: StoredPolicy | None = None
    ) -> bool:
        """Stores what is known of the rollout under way, unless somebody else has."""
        if (self._rollout or b"") not in (state, replaces):
            return False
        self._rollout = state
        if policy is not None and policy[:2] in self._policies:
            self._policies[policy[:2]] = (policy.info, self._policies[policy[:2]][1])
        return True

    async def rollout(self) -> bytes | None:
        """Returns what was stored of a rollout last."""
        return self._rollout
