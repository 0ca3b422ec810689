"""Policies and activations in memory and in the store: what one of them lacks, the other gives.

While the store is away the memory serves alone and says so (`is_degraded`); when the store is back,
what it lacks is written to it and the policy activated in the meantime is activated there, under
the number that it has here. Activation numbers never fall for our watchers. One caller at a time:
`PolicyRegistry` has the lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from router.dqn.snapshot import REASON_CHECKSUM, Snapshot, SnapshotError
from services.common.log import Logger
from services.common.state import keys
from services.common.state.errors import StateUnavailableError, VersionMismatchError
from services.common.state.policy_store import (
    Activation,
    PolicyKey,
    PolicyStore,
    StoredPolicy,
)
from services.trainer.convert import (
    BadRecordError,
    decode_policy,
    decode_rollout,
    encode_policy,
    encode_rollout,
)
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import PolicyRecord, RolloutState

T = TypeVar("T")


@dataclass(slots=True)
class KeptPolicy:
    """A policy in memory.

    Attributes:
        record: what is known about it.
        snapshot: its snapshot; empty for built-in policies.
        is_stored: True if the store has it as it is here.
    """

    record: PolicyRecord
    snapshot: bytes
    is_stored: bool


class PolicyMirror:
    """The registry's memory, kept in step with the store."""

    def __init__(
        self,
        *,
        store: PolicyStore,
        check: Callable[[bytes], Snapshot],
        log: Logger,
        metrics: TrainerMetrics,
        kept_limit: int,
    ) -> None:
        """Takes the store; `kept_limit` bounds the snapshots kept in memory.

        `check` reads a stored snapshot and raises SnapshotError for one that cannot be served.
        """
        self._store = store
        self._check = check
        self._log = log
        self._metrics = metrics
        self._kept_limit = kept_limit
        self._kept: dict[tuple[str, str], KeptPolicy] = {}
        self._has_unstored_activation = False
        self.history: list[Activation] = []
        self.rollout = RolloutState()
        self._is_rollout_stored = True
        self.changed = asyncio.Condition()
        self.is_degraded = False
        self._has_failed = False

    @property
    def activation(self) -> int:
        """Number of the present activation, 0 if there never was one."""
        return self.history[-1].activation if self.history else 0

    async def records(self) -> list[PolicyRecord]:
        """Returns every known policy, newest first."""
        found = {key: kept.record for key, kept in self._kept.items()}
        for stored in await self._attempt(self._store.policies) or ():
            try:
                record = decode_policy(stored)
            except BadRecordError as error:
                await self._set_aside(stored.name, stored.version, stored.info, str(error))
                continue
            found.setdefault((record.policy, record.version), record)
        return sorted(found.values(), key=lambda record: -record.publish_ns)

    async def find(self, policy: str, version: str) -> KeptPolicy | None:
        """Returns a policy from memory, else from the store; None if neither has it."""
        kept = self._kept.get((policy, version))
        if kept is not None:
            return kept
        stored = await self._attempt(lambda: self._store.get(policy, version))
        if stored is None:
            return None
        info, snapshot = stored[0], stored[1] or b""
        try:
            record = decode_policy(StoredPolicy(policy, version, info))
        except BadRecordError as error:
            await self._set_aside(policy, version, info, str(error))
            return None
        try:
            if self._check(snapshot).version != version:
                raise SnapshotError(REASON_CHECKSUM, "snapshot: is another one than its version")
        except SnapshotError as error:
            await self._set_aside(policy, version, snapshot, str(error))
            return None
        kept = KeptPolicy(record, snapshot, is_stored=True)
        self._keep(kept)
        return kept

    async def _set_aside(self, policy: str, version: str, payload: bytes, reason: str) -> None:
        """Takes something broken out of the store; what memory knows better is stored again."""
        kept = self._kept.get((policy, version))
        if kept is not None:
            kept.is_stored = False
        self._log.error(
            "stored_policy_set_aside", policy=policy[:64], version=version[:64], reason=reason
        )
        self._metrics.registry_set_aside.inc()
        await self._attempt(lambda: self._store.set_aside(policy, version, payload, reason))

    async def add(self, record: PolicyRecord, snapshot: bytes) -> None:
        """Takes in a new policy."""
        kept = KeptPolicy(record, snapshot, is_stored=False)
        self._keep(kept)
        await self._try_store(kept)

    async def change(self, kept: KeptPolicy, record: PolicyRecord) -> None:
        """Replaces what is known about a policy."""
        kept.record = record
        await self._try_store(kept)

    async def activate(self, policy: str, version: str, guard: int | None) -> bool:
        """Makes a policy the active one, none if its name is empty; returns if the store knows.

        Raises:
            VersionMismatchError: The store's present activation is not `guard`.
        """
        number = await self._attempt(
            lambda: self._store.activate(policy, version, guard, above=self.activation)
        )
        self._has_unstored_activation = number is None
        await self._follow(Activation(number or self.activation + 1, policy, version))
        return number is not None

    async def keep_rollout(self, state: RolloutState) -> None:
        """Replaces what is known of the rollout, and tells the watchers."""
        self.rollout, self._is_rollout_stored = state, False
        await self._store_rollout()
        async with self.changed:
            self.changed.notify_all()

    async def _store_rollout(self) -> None:
        async def put() -> bool:
            await self._store.put_rollout(encode_rollout(self.rollout))
            return True

        self._is_rollout_stored = bool(await self._attempt(put))

    async def _pull_rollout(self) -> None:
        """Takes in what another trainer, or this one before, has stored of the rollout."""
        if not self._is_rollout_stored:
            await self._store_rollout()
            return
        payload = await self._attempt(self._store.rollout)
        if not payload:
            if self.rollout != RolloutState() and not self._has_failed:
                await self._store_rollout()  # the store lost its memory
            return
        try:
            state = decode_rollout(payload)
        except BadRecordError as error:
            self._log.error("stored_rollout_broken", reason=str(error))
            await self._store_rollout()
            return
        if state != self.rollout:
            self.rollout = state
            async with self.changed:
                self.changed.notify_all()

    async def pull(self) -> None:
        """Brings memory and store together; does nothing while the store is away.

        The store is well again once all of it works: one that is read-only or full still answers.
        """
        self._has_failed = False
        await self._exchange()
        if self._has_failed:
            return
        if self.is_degraded:
            self._log.info("registry_recovered")
        self.is_degraded = False
        self._metrics.store_reachable.set(1)

    async def _exchange(self) -> None:
        history = await self._attempt(self._store.history)
        if history is None:
            return
        stored = history[-1].activation if history else 0
        if self._has_unstored_activation and history[-1:] == self.history[-1:]:
            self._has_unstored_activation = False  # it had arrived: only the answer was lost
        if stored < self.activation and not self._has_unstored_activation:
            # The store lost its memory: it gets back what we still have.
            for kept in self._kept.values():
                kept.is_stored = False
            self._is_rollout_stored = False
        for kept in [kept for kept in self._kept.values() if not kept.is_stored]:
            await self._try_store(kept)
        if self.history and (self._has_unstored_activation or stored < self.activation):
            await self._catch_up(stored)
        elif stored > self.activation:
            self.history = list(history[:-1])
            await self._follow(history[-1])
        await self._pull_rollout()

    async def _catch_up(self, stored: int) -> None:
        """Activates our policy in a store that missed it, under our number if it is free there.

        What is known under that number holds on: a pin, a rollout beside it, its watch, and what
        routers count for it.
        """
        present = self.history[-1]
        above = max(stored, present.activation - 1)
        try:
            number = await self._attempt(
                lambda: self._store.activate(present.name, present.version, stored, above=above)
            )
        except VersionMismatchError:
            return  # another trainer was quicker; the next look goes on from what it did
        if number is None:
            return
        self._has_unstored_activation = False
        self._log.info("registry_caught_up", activation=number)
        if number != present.activation:
            await self._follow(Activation(number, present.name, present.version))

    async def _follow(self, activation: Activation) -> None:
        """Notes the present activation and tells the watchers."""
        self.history.append(activation)
        del self.history[: -keys.ACTIVATION_HISTORY_LIMIT]
        self._metrics.activation.set(activation.activation)
        async with self.changed:
            self.changed.notify_all()

    async def _try_store(self, kept: KeptPolicy) -> None:
        record = kept.record

        async def put() -> bool:
            await self._store.put(
                encode_policy(record),
                kept.snapshot or None,
                record.policy,
                record.version,
                self._needed(),
            )
            return True

        kept.is_stored = bool(await self._attempt(put))

    async def _attempt(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Returns the store's answer, None while it is away."""
        try:
            return await call()
        except StateUnavailableError as error:
            self._has_failed = True
            if not self.is_degraded:
                self._log.warning("registry_degraded", reason=str(error))
            self.is_degraded = True
            self._metrics.store_reachable.set(0)
            return None

    def _keep(self, kept: KeptPolicy) -> None:
        """Keeps a policy; drops the oldest stored ones beyond the bound, but no needed one."""
        self._kept[kept.record.policy, kept.record.version] = kept
        needed = self._needed()
        for key in list(self._kept):
            if len(self._kept) <= self._kept_limit:
                return
            if key not in needed and self._kept[key].is_stored:
                del self._kept[key]

    def _needed(self) -> set[PolicyKey]:
        """Returns what is in use: the active policy, the one a rollback goes to, the one on trial.

        However long a rollout takes, and however many policies are published meanwhile.
        """
        served = [(each.name, each.version) for each in self.history]
        before = [each for each in served if each != served[-1]]
        on_trial = (self.rollout.policy, self.rollout.version)
        return {each for each in (*served[-1:], *before[-1:], on_trial) if each[1]}
