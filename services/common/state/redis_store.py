"""The state store on Redis; the only module that knows Redis.

Every call has a timeout and ends in a result or in StateUnavailableError. A connection that broke
is made anew by the next call. Numbers in Lua are doubles: versions must stay below 2**53, as
milliseconds since 1970 do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from services.common.state import keys, scripts
from services.common.state.store import (
    Activation,
    StateUnavailableError,
    StreamEntry,
    VersionMismatchError,
)

Result = TypeVar("Result")

_FIELD = b"e"
_MS_PER_S = 1000.0


class RedisStateStore:
    """A StateStore on one Redis.

    Args:
        url: `redis://host:port/db`.
        timeout_s: Longest time a call may take, connecting included, in seconds.
        experience_limit: Entries the experience stream keeps, approximately.
        policy_limit: Policies the registry keeps.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 0.5,
        experience_limit: int = keys.EXPERIENCE_LIMIT,
        policy_limit: int = keys.POLICY_COUNT_LIMIT,
    ) -> None:
        self._timeout_s = timeout_s
        self._experience_limit = experience_limit
        self._policy_limit = policy_limit
        # One immediate retry: the first command after a restart of Redis meets a dead connection.
        # Time is bounded by _guarded, because a socket timeout would cut blocking reads short.
        self._redis: Redis = Redis.from_url(
            url,
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),
            retry_on_error=[ConnectionError],
        )
        register = self._redis.register_script
        self._publish_state = register(scripts.PUBLISH_STATE)
        self._take_peer_reports = register(scripts.TAKE_PEER_REPORTS)
        self._save_topology = register(scripts.SAVE_TOPOLOGY)
        self._acquire_lease = register(scripts.ACQUIRE_LEASE)
        self._renew_lease = register(scripts.RENEW_LEASE)
        self._release_lease = register(scripts.RELEASE_LEASE)
        self._put_policy = register(scripts.PUT_POLICY)
        self._activate = register(scripts.ACTIVATE)

    async def ping(self) -> None:
        """Returns if Redis answers."""
        await self._guarded(lambda: self._redis.ping())

    async def close(self) -> None:
        """Closes the connections; never raises."""
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                await self._redis.aclose()

    # -- system state and topology

    async def publish_system_state(self, payload: bytes, version: int) -> bool:
        """Stores the newest system state; False, storing nothing, if a newer one is there."""
        ttl_ms = round(keys.SYSTEM_STATE_TTL_S * _MS_PER_S)
        arguments = (version, payload, ttl_ms)
        stored = await self._guarded(lambda: self._publish_state([keys.SYSTEM_STATE], arguments))
        return bool(stored)

    async def load_system_state(self) -> bytes | None:
        """Returns the newest system state, None if there is none."""
        payload = await self._guarded(lambda: self._redis.hget(keys.SYSTEM_STATE, "payload"))
        return cast("bytes | None", payload)

    async def put_peer_reports(self, peer: str, payload: bytes) -> None:
        """Hands the router reports a monitor received to the one that publishes; newest wins."""

        def put() -> Awaitable[Any]:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.hset(keys.PEER_REPORTS, peer, cast("Any", payload))
            pipeline.pexpire(keys.PEER_REPORTS, _ms(keys.PEER_REPORTS_TTL_S))
            return cast("Awaitable[Any]", pipeline.execute())

        await self._guarded(put)

    async def take_peer_reports(self) -> list[bytes]:
        """Returns what the other monitors handed over since the last call, and forgets it."""
        found = await self._guarded(lambda: self._take_peer_reports([keys.PEER_REPORTS]))
        return cast("list[bytes]", found)

    async def save_topology(
        self, payload: bytes, version: int, expected_version: int | None = None
    ) -> None:
        """Stores the endpoint list; VersionMismatchError if another version is there."""
        expected = "" if expected_version is None else expected_version
        arguments = (version, payload, expected)
        found = int(await self._guarded(lambda: self._save_topology([keys.TOPOLOGY], arguments)))
        if found >= 0:
            raise VersionMismatchError("topology", expected_version or 0, found)

    async def load_topology(self) -> tuple[int, bytes] | None:
        """Returns version and endpoint list, None if there is none."""
        version, payload = await self._guarded(
            lambda: self._redis.hmget(keys.TOPOLOGY, ["version", "payload"])
        )
        return None if version is None or payload is None else (int(version), payload)

    # -- leases

    async def acquire_lease(self, name: str, owner: str, ttl_s: float) -> bool:
        """Takes the lease if it is free, or renews it if `owner` has it."""
        arguments = (owner, _ms(ttl_s))
        return bool(await self._guarded(lambda: self._acquire_lease([keys.lease(name)], arguments)))

    async def renew_lease(self, name: str, owner: str, ttl_s: float) -> bool:
        """Extends the lease; False if `owner` does not have it any more."""
        arguments = (owner, _ms(ttl_s))
        return bool(await self._guarded(lambda: self._renew_lease([keys.lease(name)], arguments)))

    async def release_lease(self, name: str, owner: str) -> bool:
        """Gives the lease back; False if `owner` did not have it."""
        return bool(await self._guarded(lambda: self._release_lease([keys.lease(name)], (owner,))))

    # -- policy registry

    async def put_policy(
        self, info: bytes, snapshot: bytes | None, name: str, version: str
    ) -> None:
        """Stores a policy, or replaces its info; None leaves a stored snapshot as it is."""
        names = [
            keys.POLICY_INFO, keys.POLICY_ORDER, keys.PUBLICATION_COUNTER, keys.ACTIVATION_HISTORY,
        ]  # fmt: skip
        arguments = (
            keys.policy_id(name, version), info, int(snapshot is not None), snapshot or b"",
            keys.POLICY_SNAPSHOT_PREFIX, self._policy_limit,
        )  # fmt: skip
        await self._guarded(lambda: self._put_policy(names, arguments))

    async def list_policies(self) -> list[bytes]:
        """Returns the info of every policy, newest publication first."""
        ids = await self._guarded(lambda: self._redis.zrevrange(keys.POLICY_ORDER, 0, -1))
        if not ids:
            return []
        infos = await self._guarded(lambda: self._redis.hmget(keys.POLICY_INFO, ids))
        return [info for info in infos if info is not None]

    async def get_policy(self, name: str, version: str) -> tuple[bytes, bytes | None] | None:
        """Returns info and snapshot of a policy, None if unknown."""

        def both() -> Awaitable[Any]:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hget(keys.POLICY_INFO, keys.policy_id(name, version))
            pipeline.get(keys.policy_snapshot(name, version))
            return cast("Awaitable[Any]", pipeline.execute())

        info, snapshot = await self._guarded(both)
        return None if info is None else (info, snapshot)

    async def activate(
        self, name: str, version: str, expected_activation: int | None = None
    ) -> int:
        """Makes a policy active; VersionMismatchError if another came in between."""
        expected = "" if expected_activation is None else expected_activation
        names = [keys.ACTIVATION_COUNTER, keys.ACTIVATION_HISTORY]
        arguments = (keys.policy_id(name, version), expected, keys.ACTIVATION_HISTORY_LIMIT)
        done, activation = await self._guarded(lambda: self._activate(names, arguments))
        if not done:
            raise VersionMismatchError("activation", expected_activation or 0, int(activation))
        return int(activation)

    async def active(self) -> Activation | None:
        """Returns the present activation, None if there never was one."""
        entry = await self._guarded(lambda: self._redis.lindex(keys.ACTIVATION_HISTORY, -1))
        return None if entry is None else _parse_activation(cast("bytes", entry))

    async def activation_history(self) -> list[Activation]:
        """Returns the kept activations, oldest first; the last one is the present one."""
        entries = await self._guarded(lambda: self._redis.lrange(keys.ACTIVATION_HISTORY, 0, -1))
        return [_parse_activation(entry) for entry in entries]

    # -- experience

    async def append_experience(self, payloads: Sequence[bytes]) -> None:
        """Appends entries in one round trip; the oldest entries beyond the bound give way."""
        if not payloads:
            return

        def append() -> Awaitable[Any]:
            pipeline = self._redis.pipeline(transaction=False)
            for payload in payloads:
                pipeline.xadd(
                    keys.EXPERIENCE_STREAM, {_FIELD: payload},
                    maxlen=self._experience_limit, approximate=True,
                )  # fmt: skip
            return cast("Awaitable[Any]", pipeline.execute())

        await self._guarded(append)

    async def read_experience(
        self, group: str, consumer: str, count: int, block_s: float
    ) -> list[StreamEntry]:
        """Returns up to `count` new entries, waiting up to `block_s` seconds for the first."""
        block_ms = _ms(block_s) if block_s > 0 else None

        def read() -> Awaitable[Any]:
            return cast(
                "Awaitable[Any]",
                self._redis.xreadgroup(
                    group, consumer, {keys.EXPERIENCE_STREAM: ">"}, count=count, block=block_ms
                ),
            )

        answer = await self._with_group(group, read, extra_s=block_s)
        return [entry for _stream, entries in _pairs(answer) for entry in _entries(entries)]

    async def ack_experience(self, group: str, entry_ids: Sequence[str]) -> int:
        """Marks entries as safely taken in; returns how many were marked."""
        if not entry_ids:
            return 0
        return int(
            await self._guarded(lambda: self._redis.xack(keys.EXPERIENCE_STREAM, group, *entry_ids))
        )

    async def claim_stale_experience(
        self, group: str, consumer: str, min_idle_s: float, count: int
    ) -> list[StreamEntry]:
        """Takes over entries read at least `min_idle_s` ago and never acknowledged."""

        def claim() -> Awaitable[Any]:
            return cast(
                "Awaitable[Any]",
                self._redis.xautoclaim(
                    keys.EXPERIENCE_STREAM, group, consumer, _ms(min_idle_s), count=count
                ),
            )

        answer = await self._with_group(group, claim)
        # Entries the stream has dropped in the meantime come back without fields.
        return _entries(answer[1])

    async def experience_count(self) -> int:
        """Returns the number of entries in the stream."""
        return int(await self._guarded(lambda: self._redis.xlen(keys.EXPERIENCE_STREAM)))

    # -- plumbing

    async def _with_group(
        self, group: str, call: Callable[[], Awaitable[Any]], extra_s: float = 0.0
    ) -> Any:
        """Runs a group command; makes the group if there is none (first use, emptied Redis)."""
        for _attempt in range(2):
            try:
                return await self._bounded(call, self._timeout_s + extra_s)
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise StateUnavailableError(f"Redis refused: {error}") from error
            await self._make_group(group)
        raise StateUnavailableError("Redis lost the consumer group twice in a row")

    async def _make_group(self, group: str) -> None:
        try:
            await self._bounded(
                lambda: self._redis.xgroup_create(
                    keys.EXPERIENCE_STREAM, group, id="0", mkstream=True
                ),
                self._timeout_s,
            )
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise StateUnavailableError(f"Redis refused: {error}") from error

    async def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return await self._bounded(call, self._timeout_s)
        except ResponseError as error:
            raise StateUnavailableError(f"Redis refused: {error}") from error

    async def _bounded(self, call: Callable[[], Any], timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await call()
        except ResponseError:
            raise
        except TimeoutError:
            raise StateUnavailableError(f"Redis did not answer within {timeout_s:g} s") from None
        except (RedisError, OSError) as error:
            raise StateUnavailableError(f"Redis cannot be reached: {error}") from error


def _ms(duration_s: float) -> int:
    return max(1, round(duration_s * _MS_PER_S))


def _pairs(answer: Any) -> list[tuple[Any, Any]]:
    """Returns (stream, entries) pairs of both protocol versions' answers."""
    if not answer:
        return []
    if isinstance(answer, dict):
        # RESP3 nests the entries of a stream in one more list.
        return [(name, batches[0] if batches else []) for name, batches in answer.items()]
    return [(name, entries) for name, entries in answer]


def _entries(entries: Any) -> list[StreamEntry]:
    return [
        StreamEntry(entry_id.decode("ascii"), fields[_FIELD])
        for entry_id, fields in entries
        if fields and _FIELD in fields
    ]


def _parse_activation(entry: bytes) -> Activation:
    number, _, identifier = entry.decode("utf-8").partition(" ")
    name, _, version = identifier.partition("@")
    return Activation(int(number), name, version)
