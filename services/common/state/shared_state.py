"""What monitors share: the newest system state, reports, endpoints, targets, ratings, a lease."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol, cast

from redis.exceptions import ResponseError

from services.common.clock import Clock
from services.common.state import keys, scripts
from services.common.state.errors import StoredDataError, VersionMismatchError
from services.common.state.redis_connection import RedisConnection, milliseconds

_MOST_DIGITS = 16


class SharedState(Protocol):
    """The store; a method that cannot answer raises StateUnavailableError within its timeout."""

    async def publish_system_state(self, payload: bytes, version: int) -> bool:
        """Stores the newest system state; False, storing nothing, if a newer one is there."""
        ...

    async def load_system_state(self) -> bytes | None:
        """Returns the newest system state, None if there is none."""
        ...

    async def put_peer_reports(self, peer: str, payload: bytes) -> None:
        """Hands the router reports a monitor received to the one that publishes; newest wins."""
        ...

    async def take_peer_reports(self) -> list[bytes]:
        """Returns what the other monitors handed over since the last call, and forgets it."""
        ...

    async def save_topology(self, payload: bytes, version: int, expected_version: int) -> None:
        """Stores the endpoint list.

        Raises:
            VersionMismatchError: The stored version is not the expected one (0: none stored), and
                what is stored is something else than this.
        """
        ...

    async def load_topology(self) -> tuple[int, bytes] | None:
        """Returns version and endpoint list, None if there is none.

        Raises:
            StoredDataError: Something else stands there.
        """
        ...

    async def set_aside_topology(self) -> None:
        """Takes an endpoint list that cannot be read out of the way and keeps it for a while."""
        ...

    async def save_targets(self, payload: bytes, version: int, expected_version: int) -> None:
        """Stores the targets set while the mesh runs; raises as `save_topology` does."""
        ...

    async def load_targets(self) -> tuple[int, bytes] | None:
        """Returns version and targets, None if there are none; raises as `load_topology` does."""
        ...

    async def set_aside_targets(self) -> None:
        """Takes targets that cannot be read out of the way and keeps them for a while."""
        ...

    async def save_ratings(self, payload: bytes, version: int, expected_version: int) -> None:
        """Stores what clients said of answers; raises as `save_topology` does."""
        ...

    async def load_ratings(self) -> tuple[int, bytes] | None:
        """Returns version and ratings, None if there are none; raises as `load_topology` does."""
        ...

    async def set_aside_ratings(self) -> None:
        """Takes ratings that cannot be read out of the way and keeps them for a while."""
        ...

    async def acquire_lease(self, name: str, owner: str, ttl_s: float) -> bool:
        """Takes the lease if it is free, or extends it if `owner` has it; True if it has it now."""
        ...

    async def release_lease(self, name: str, owner: str) -> bool:
        """Gives the lease back; False if `owner` did not have it."""
        ...


class RedisSharedState:
    """A SharedState in Redis."""

    def __init__(self, connection: RedisConnection) -> None:
        self._redis, self._call = connection.redis, connection.call
        register = self._redis.register_script
        self._publish_state = register(scripts.PUBLISH_STATE)
        self._take_peer_reports = register(scripts.TAKE_PEER_REPORTS)
        self._save_version = register(scripts.SAVE_VERSION)
        self._set_aside = register(scripts.SET_ASIDE)
        self._acquire_lease = register(scripts.ACQUIRE_LEASE)
        self._release_lease = register(scripts.RELEASE_LEASE)

    async def publish_system_state(self, payload: bytes, version: int) -> bool:
        """Stores the newest system state."""
        ttl_ms = milliseconds(keys.SYSTEM_STATE_TTL_S)
        arguments = (version, payload, ttl_ms, keys.LARGEST_VERSION)
        return bool(await self._call(lambda: self._publish_state([keys.SYSTEM_STATE], arguments)))

    async def load_system_state(self) -> bytes | None:
        """Returns the newest system state."""
        try:
            payload = await self._call(
                lambda: self._redis.hget(keys.SYSTEM_STATE, "payload"), known=("WRONGTYPE",)
            )
        except ResponseError:
            return None  # not ours; the next publication replaces it
        return cast("bytes | None", payload)

    async def put_peer_reports(self, peer: str, payload: bytes) -> None:
        """Keeps the reports of a monitor for a few seconds."""

        def put() -> Awaitable[Any]:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.hset(keys.PEER_REPORTS, peer, cast("Any", payload))
            pipeline.pexpire(keys.PEER_REPORTS, milliseconds(keys.PEER_REPORTS_TTL_S))
            return cast("Awaitable[Any]", pipeline.execute())

        await self._call(put)

    async def take_peer_reports(self) -> list[bytes]:
        """Returns and forgets the reports of the monitors."""
        found = await self._call(lambda: self._take_peer_reports([keys.PEER_REPORTS]))
        return cast("list[bytes]", found)

    async def save_topology(self, payload: bytes, version: int, expected_version: int) -> None:
        """Stores the endpoint list; VersionMismatchError if another version is there."""
        await self._save(keys.TOPOLOGY, payload, version, expected_version)

    async def load_topology(self) -> tuple[int, bytes] | None:
        """Returns version and endpoint list."""
        return await self._load(keys.TOPOLOGY)

    async def set_aside_topology(self) -> None:
        """Renames the key."""
        await self._take_away(keys.TOPOLOGY, keys.TOPOLOGY_SET_ASIDE)

    async def save_targets(self, payload: bytes, version: int, expected_version: int) -> None:
        """Stores the targets; VersionMismatchError if another version is there."""
        await self._save(keys.TARGETS, payload, version, expected_version)

    async def load_targets(self) -> tuple[int, bytes] | None:
        """Returns version and targets."""
        return await self._load(keys.TARGETS)

    async def set_aside_targets(self) -> None:
        """Renames the key."""
        await self._take_away(keys.TARGETS, keys.TARGETS_SET_ASIDE)

    async def save_ratings(self, payload: bytes, version: int, expected_version: int) -> None:
        """Stores the ratings; VersionMismatchError if another version is there."""
        await self._save(keys.RATINGS, payload, version, expected_version)

    async def load_ratings(self) -> tuple[int, bytes] | None:
        """Returns version and ratings."""
        return await self._load(keys.RATINGS)

    async def set_aside_ratings(self) -> None:
        """Renames the key."""
        await self._take_away(keys.RATINGS, keys.RATINGS_SET_ASIDE)

    async def _save(self, key: str, payload: bytes, version: int, expected_version: int) -> None:
        arguments = (version, payload, expected_version)
        found = int(await self._call(lambda: self._save_version([key], arguments)))
        if found >= 0:
            raise VersionMismatchError(key, expected_version, found)

    async def _load(self, key: str) -> tuple[int, bytes] | None:
        try:
            version, payload = await self._call(
                lambda: self._redis.hmget(key, ["version", "payload"]), known=("WRONGTYPE",)
            )
        except ResponseError as error:
            raise StoredDataError(f"{key}: {error}") from None
        if version is None and payload is None:
            return None
        is_number = version is not None and version.isdigit() and len(version) <= _MOST_DIGITS
        if not is_number or payload is None or not 0 < int(version) <= keys.LARGEST_VERSION:
            raise StoredDataError(f"{key}: version {version!r:.80}")
        return int(version), payload

    async def _take_away(self, key: str, to: str) -> None:
        arguments = (to, milliseconds(keys.SET_ASIDE_TTL_S))
        await self._call(lambda: self._set_aside([key], arguments))

    async def acquire_lease(self, name: str, owner: str, ttl_s: float) -> bool:
        """Takes or extends the lease."""
        arguments = (owner, milliseconds(ttl_s), milliseconds(keys.LONGEST_LEASE_S))
        return bool(await self._call(lambda: self._acquire_lease([keys.lease(name)], arguments)))

    async def release_lease(self, name: str, owner: str) -> bool:
        """Gives the lease back."""
        return bool(await self._call(lambda: self._release_lease([keys.lease(name)], (owner,))))


class MemorySharedState:
    """A SharedState of one process, gone with it.

    Args:
        clock: For leases.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._state: tuple[int, bytes] | None = None
        self._topology: tuple[int, bytes] | None = None
        self._targets: tuple[int, bytes] | None = None
        self._ratings: tuple[int, bytes] | None = None
        self._peer_reports: dict[str, bytes] = {}
        self._leases: dict[str, tuple[str, float]] = {}

    async def publish_system_state(self, payload: bytes, version: int) -> bool:
        """Stores a state that is not older."""
        if self._state is not None and version < self._state[0]:
            return False
        self._state = (version, payload)
        return True

    async def load_system_state(self) -> bytes | None:
        """Returns the state."""
        return None if self._state is None else self._state[1]

    async def put_peer_reports(self, peer: str, payload: bytes) -> None:
        """Keeps the reports of a peer."""
        self._peer_reports[peer] = payload

    async def take_peer_reports(self) -> list[bytes]:
        """Returns and forgets the reports of the peers."""
        found = list(self._peer_reports.values())
        self._peer_reports.clear()
        return found

    async def save_topology(self, payload: bytes, version: int, expected_version: int) -> None:
        """Stores the endpoint list."""
        self._topology = _saved(keys.TOPOLOGY, self._topology, (version, payload), expected_version)

    async def load_topology(self) -> tuple[int, bytes] | None:
        """Returns the endpoint list."""
        return self._topology

    async def set_aside_topology(self) -> None:
        """Forgets the endpoint list."""
        self._topology = None

    async def save_targets(self, payload: bytes, version: int, expected_version: int) -> None:
        """Stores the targets."""
        self._targets = _saved(keys.TARGETS, self._targets, (version, payload), expected_version)

    async def load_targets(self) -> tuple[int, bytes] | None:
        """Returns the targets."""
        return self._targets

    async def set_aside_targets(self) -> None:
        """Forgets the targets."""
        self._targets = None

    async def save_ratings(self, payload: bytes, version: int, expected_version: int) -> None:
        """Stores the ratings."""
        self._ratings = _saved(keys.RATINGS, self._ratings, (version, payload), expected_version)

    async def load_ratings(self) -> tuple[int, bytes] | None:
        """Returns the ratings."""
        return self._ratings

    async def set_aside_ratings(self) -> None:
        """Forgets the ratings."""
        self._ratings = None

    async def acquire_lease(self, name: str, owner: str, ttl_s: float) -> bool:
        """Takes or extends a lease."""
        now_s = self._clock.monotonic_s()
        holder, until_s = self._leases.get(name, ("", 0.0))
        if holder not in ("", owner) and until_s > now_s:
            return False
        self._leases[name] = (owner, now_s + ttl_s)
        return True

    async def release_lease(self, name: str, owner: str) -> bool:
        """Gives a lease back."""
        if self._leases.get(name, ("", 0.0))[0] != owner:
            return False
        del self._leases[name]
        return True


def _saved(
    key: str, stored: tuple[int, bytes] | None, new: tuple[int, bytes], expected_version: int
) -> tuple[int, bytes]:
    """Returns what is to be stored; what is there already may be stored again."""
    found = 0 if stored is None else stored[0]
    if found != expected_version and stored != new:
        raise VersionMismatchError(key, expected_version, found)
    return new
