"""A state store in memory with the behaviour of the real one, and a switch that makes it fail."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.clock import Clock
from services.common.state.store import (
    Activation,
    StateUnavailableError,
    StreamEntry,
    VersionMismatchError,
)


class FakeStateStore:
    """A StateStore in memory; `fail = True` makes every call raise StateUnavailableError."""

    def __init__(self, clock: Clock) -> None:
        self.fail = False
        self._clock = clock
        self._state: tuple[int, bytes] | None = None
        self._topology: tuple[int, bytes] | None = None
        self._leases: dict[str, tuple[str, float]] = {}
        self._policies: dict[tuple[str, str], tuple[bytes, bytes | None]] = {}
        self._activations: list[Activation] = []
        self._entries: list[StreamEntry] = []
        self._next: dict[str, int] = {}
        self._pending: dict[str, dict[str, tuple[StreamEntry, float]]] = {}

    def _check(self) -> None:
        if self.fail:
            raise StateUnavailableError("switched off by the test")

    async def ping(self) -> None:
        """Returns unless switched off."""
        self._check()

    async def close(self) -> None:
        """Does nothing."""

    async def publish_system_state(self, payload: bytes, version: int) -> bool:
        """Stores a state that is not older."""
        self._check()
        if self._state is not None and version < self._state[0]:
            return False
        self._state = (version, payload)
        return True

    async def load_system_state(self) -> bytes | None:
        """Returns the state."""
        self._check()
        return None if self._state is None else self._state[1]

    async def save_topology(
        self, payload: bytes, version: int, expected_version: int | None = None
    ) -> None:
        """Stores the endpoint list."""
        self._check()
        found = 0 if self._topology is None else self._topology[0]
        if expected_version is not None and found != expected_version:
            raise VersionMismatchError("topology", expected_version, found)
        self._topology = (version, payload)

    async def load_topology(self) -> tuple[int, bytes] | None:
        """Returns the endpoint list."""
        self._check()
        return self._topology

    async def acquire_lease(self, name: str, owner: str, ttl_s: float) -> bool:
        """Takes or renews a lease."""
        self._check()
        now_s = self._clock.monotonic_s()
        holder, until_s = self._leases.get(name, ("", 0.0))
        if holder not in ("", owner) and until_s > now_s:
            return False
        self._leases[name] = (owner, now_s + ttl_s)
        return True

    async def renew_lease(self, name: str, owner: str, ttl_s: float) -> bool:
        """Extends a lease."""
        self._check()
        now_s = self._clock.monotonic_s()
        holder, until_s = self._leases.get(name, ("", 0.0))
        if holder != owner or until_s <= now_s:
            return False
        self._leases[name] = (owner, now_s + ttl_s)
        return True

    async def release_lease(self, name: str, owner: str) -> bool:
        """Gives a lease back."""
        self._check()
        if self._leases.get(name, ("", 0.0))[0] != owner:
            return False
        del self._leases[name]
        return True

    async def put_policy(
        self, info: bytes, snapshot: bytes | None, name: str, version: str
    ) -> None:
        """Stores a policy."""
        self._check()
        kept = self._policies.get((name, version), (b"", None))[1]
        self._policies[(name, version)] = (info, kept if snapshot is None else snapshot)

    async def list_policies(self) -> list[bytes]:
        """Returns the infos, newest first."""
        self._check()
        return [info for info, _ in reversed(self._policies.values())]

    async def get_policy(self, name: str, version: str) -> tuple[bytes, bytes | None] | None:
        """Returns a policy."""
        self._check()
        return self._policies.get((name, version))

    async def activate(
        self, name: str, version: str, expected_activation: int | None = None
    ) -> int:
        """Activates a policy."""
        self._check()
        found = self._activations[-1].activation if self._activations else 0
        if expected_activation is not None and expected_activation != found:
            raise VersionMismatchError("activation", expected_activation, found)
        self._activations.append(Activation(found + 1, name, version))
        return found + 1

    async def active(self) -> Activation | None:
        """Returns the present activation."""
        self._check()
        return self._activations[-1] if self._activations else None

    async def activation_history(self) -> list[Activation]:
        """Returns all activations, oldest first."""
        self._check()
        return list(self._activations)

    async def append_experience(self, payloads: Sequence[bytes]) -> None:
        """Appends entries."""
        self._check()
        for payload in payloads:
            self._entries.append(StreamEntry(f"{len(self._entries) + 1}-0", payload))

    async def read_experience(
        self, group: str, consumer: str, count: int, block_s: float
    ) -> list[StreamEntry]:
        """Returns new entries; waits on the clock if there are none."""
        self._check()
        start = self._next.get(group, 0)
        if start >= len(self._entries) and block_s > 0:
            await self._clock.sleep(block_s)
            self._check()
        found = self._entries[start : start + count]
        self._next[group] = start + len(found)
        now_s = self._clock.monotonic_s()
        self._pending.setdefault(group, {}).update({e.entry_id: (e, now_s) for e in found})
        return found

    async def ack_experience(self, group: str, entry_ids: Sequence[str]) -> int:
        """Acknowledges entries."""
        self._check()
        pending = self._pending.setdefault(group, {})
        return sum(pending.pop(entry_id, None) is not None for entry_id in entry_ids)

    async def claim_stale_experience(
        self, group: str, consumer: str, min_idle_s: float, count: int
    ) -> list[StreamEntry]:
        """Takes over old unacknowledged entries."""
        self._check()
        now_s = self._clock.monotonic_s()
        pending = self._pending.setdefault(group, {})
        stale = [e for e, read_s in pending.values() if now_s - read_s >= min_idle_s][:count]
        pending.update({e.entry_id: (e, now_s) for e in stale})
        return stale

    async def experience_count(self) -> int:
        """Returns the number of entries."""
        self._check()
        return len(self._entries)
