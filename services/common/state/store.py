"""What outlives a process or is seen by all: the protocol of the state store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class StateUnavailableError(Exception):
    """The store cannot be reached or did not answer in time; the caller goes on without it."""


class VersionMismatchError(Exception):
    """Somebody else wrote first.

    Args:
        what: What was written.
        expected: Number the caller had seen.
        found: Number that is there.
    """

    def __init__(self, what: str, expected: int, found: int) -> None:
        super().__init__(f"{what}: expected {expected}, found {found}")
        self.expected = expected
        self.found = found


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


class StreamEntry(NamedTuple):
    """One entry of the experience stream.

    Args:
        entry_id: Its id, for the acknowledgement.
        payload: A serialized ExperienceEntry.
    """

    entry_id: str
    payload: bytes


class StateStore(Protocol):
    """The store; a method that cannot answer raises StateUnavailableError within its timeout."""

    async def ping(self) -> None:
        """Returns if the store answers."""
        ...

    async def close(self) -> None:
        """Closes the connections; never raises."""
        ...

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

    async def save_topology(
        self, payload: bytes, version: int, expected_version: int | None = None
    ) -> None:
        """Stores the endpoint list.

        Raises:
            VersionMismatchError: The stored version is not the expected one (0: none stored).
        """
        ...

    async def load_topology(self) -> tuple[int, bytes] | None:
        """Returns version and endpoint list, None if there is none."""
        ...

    async def acquire_lease(self, name: str, owner: str, ttl_s: float) -> bool:
        """Takes the lease if it is free or `owner` has it; True if `owner` has it now."""
        ...

    async def renew_lease(self, name: str, owner: str, ttl_s: float) -> bool:
        """Extends the lease; False if `owner` does not have it any more."""
        ...

    async def release_lease(self, name: str, owner: str) -> bool:
        """Gives the lease back; False if `owner` did not have it."""
        ...

    async def put_policy(
        self, info: bytes, snapshot: bytes | None, name: str, version: str
    ) -> None:
        """Stores a policy, or replaces its info; a snapshot of None leaves a stored one as it is.

        The oldest policies beyond the registry's bound are dropped, but neither the active one nor
        the one a rollback would go to.
        """
        ...

    async def list_policies(self) -> list[bytes]:
        """Returns the info of every policy, newest publication first."""
        ...

    async def get_policy(self, name: str, version: str) -> tuple[bytes, bytes | None] | None:
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

    async def activation_history(self) -> list[Activation]:
        """Returns the kept activations, oldest first; the last one is the present one."""
        ...

    async def append_experience(self, payloads: Sequence[bytes]) -> None:
        """Appends serialized ExperienceEntry messages; the oldest entries give way."""
        ...

    async def read_experience(
        self, group: str, consumer: str, count: int, block_s: float
    ) -> list[StreamEntry]:
        """Returns up to `count` entries that no consumer of the group has had.

        Waits up to `block_s` seconds for the first.
        """
        ...

    async def ack_experience(self, group: str, entry_ids: Sequence[str]) -> int:
        """Marks entries as safely taken in; returns how many were marked."""
        ...

    async def claim_stale_experience(
        self, group: str, consumer: str, min_idle_s: float, count: int
    ) -> list[StreamEntry]:
        """Takes over entries read at least `min_idle_s` seconds ago and never acknowledged."""
        ...

    async def experience_count(self) -> int:
        """Returns the number of entries in the stream."""
        ...
