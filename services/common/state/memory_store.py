"""The state store of a process that has no Redis: in memory, gone with the process, not shared."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from services.common.clock import Clock
from services.common.state import keys
from services.common.state.store import (
    Activation,
    StreamEntry,
    VersionMismatchError,
)


class MemoryStateStore:
    """A StateStore in memory, with the bounds of the real one.

    Args:
        clock: For leases and blocking reads.
        experience_limit: Entries the experience stream keeps.
        policy_limit: Policies the registry keeps.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        experience_limit: int = keys.EXPERIENCE_LIMIT,
        policy_limit: int = keys.POLICY_COUNT_LIMIT,
    ) -> None:
        self._policy_limit = policy_limit
        self._experience_limit = experience_limit
        self._clock = clock
        self._state: tuple[int, bytes] | None = None
        self._topology: tuple[int, bytes] | None = None
        self._peer_reports: dict[str, bytes] = {}
        self._leases: dict[str, tuple[str, float]] = {}
        self._policies: dict[tuple[str, str], tuple[bytes, bytes | None]] = {}
        self._activations: list[Activation] = []
        self._entries: deque[tuple[int, StreamEntry]] = deque(maxlen=experience_limit)
        self._last_number = 0
        self._next: dict[str, int] = {}
        self._pending: dict[str, dict[str, tuple[StreamEntry, float]]] = {}

    def _check(self) -> None:
        """Hook of tests that make the store fail."""

    async def ping(self) -> None:
        """Returns."""
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

    async def put_peer_reports(self, peer: str, payload: bytes) -> None:
        """Keeps the reports of a peer."""
        self._check()
        self._peer_reports[peer] = payload

    async def take_peer_reports(self) -> list[bytes]:
        """Returns and forgets the reports of the peers."""
        self._check()
        found = list(self._peer_reports.values())
        self._peer_reports.clear()
        return found

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
        needed = {(a.name, a.version) for a in self._activations[-2:]} | {(name, version)}
        droppable = [key for key in self._policies if key not in needed]
        for key in droppable[: max(len(self._policies) - self._policy_limit, 0)]:
            del self._policies[key]

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
        del self._activations[: -keys.ACTIVATION_HISTORY_LIMIT]
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
            self._last_number += 1
            entry = StreamEntry(f"{self._last_number}-0", payload)
            self._entries.append((self._last_number, entry))

    async def read_experience(
        self,
        group: str,
        consumer: str,
        count: int,
        block_s: float,
    ) -> list[StreamEntry]:
        """Returns new entries; waits on the clock if there are none."""
        self._check()
        had = self._next.get(group, 0)
        if had >= self._last_number and block_s > 0:
            await self._clock.sleep(block_s)
            self._check()
        new = [(number, entry) for number, entry in self._entries if number > had][:count]
        found = [entry for _, entry in new]
        if new:
            self._next[group] = new[-1][0]
        now_s = self._clock.monotonic_s()
        pending = self._pending.setdefault(group, {})
        pending.update({e.entry_id: (e, now_s) for e in found})
        for entry_id in list(pending)[: max(len(pending) - self._experience_limit, 0)]:
            del pending[entry_id]
        return found

    async def ack_experience(self, group: str, entry_ids: Sequence[str]) -> int:
        """Acknowledges entries."""
        self._check()
        pending = self._pending.setdefault(group, {})
        return sum(pending.pop(entry_id, None) is not None for entry_id in entry_ids)

    async def claim_stale_experience(
        self,
        group: str,
        consumer: str,
        min_idle_s: float,
        count: int,
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
