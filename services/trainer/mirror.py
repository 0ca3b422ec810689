"""Policies and activations in memory and in the store: what one of them lacks, the other gives.

While the store is away the memory serves alone and says so (`is_degraded`); when the store is back,
what it lacks is written to it and the policy activated in the meantime is activated there, under
the number that it has here. Activation numbers never fall for our watchers. One caller at a time:
`PolicyRegistry` has the lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
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
from services.trainer.convert import BadRecordError, decode_policy, encode_policy
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import PolicyRecord, RolloutState
from services.trainer.rollout_mirror import RolloutMirror

T = TypeVar("T")

Change = Callable[[RolloutState], RolloutState]
"""What is known of the rollout to what is to be known."""
Note = Callable[[RolloutState, int], RolloutState]
"""What is known of the rollout, and the number of an activation, to what is to be known then."""


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
        self._stored_activation = 0
        self.history: list[Activation] = []
        self._rollout = RolloutMirror(store=store, attempt=self._attempt, log=log)
        self.changed = asyncio.Condition()
        self.is_degraded = False
        self._has_failed = False

    @property
    def activation(self) -> int:
        """Number of the present activation, 0 if there never was one."""
        return self.history[-1].activation if self.history else 0

    @property
    def rollout(self) -> RolloutState:
        """What is known of the rollout."""
        return self._rollout.state

    async def records(self) -> list[PolicyRecord]:
        """Returns every known policy, newest first, with what other trainers know of it."""
        found: dict[PolicyKey, PolicyRecord] = {}
        for stored in await self._attempt(self._store.policies) or ():
            try:
                record = decode_policy(stored)
            except BadRecordError as error:
                await self._set_aside(stored.name, stored.version, stored.info, str(error))
                continue
            kept = self._kept.get((record.policy, record.version))
            if kept is not None and kept.is_stored:
                kept.record = record
            found[record.policy, record.version] = record
        found |= {key: kept.record for key, kept in self._kept.items()}
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

    async def read(self, policy: str, version: str) -> KeptPolicy | None:
        """Returns a policy as `find` does, with what other trainers know of it by now."""
        kept = self._kept.get((policy, version))
        if kept is None or not kept.is_stored:
            return await self.find(policy, version)
        stored = await self._attempt(lambda: self._store.get(policy, version))
        if stored is not None:
            with suppress(BadRecordError):  # it is set aside where policies are listed
                kept.record = decode_policy(StoredPolicy(policy, version, stored[0]))
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

    async def drop(self, policy: str, version: str) -> None:
        """Forgets a policy, here and in the store."""
        self._kept.pop((policy, version), None)
        await self._attempt(lambda: self._store.drop(policy, version))

    async def activate(
        self, policy: str, version: str, guard: int | None, note: Note | None = None
    ) -> bool:
        """Makes a policy the active one, none if its name is empty; returns if the store knows.

        What `note` makes of the rollout is stored in one step with the activation: a trainer that
        is killed leaves neither without the other.

        Raises:
            VersionMismatchError: The store's present activation is not `guard`.
        """
        number = self.activation + 1
        noted = self._rollout.noted(note(self.rollout, number), number) if note else None
        given = await self._attempt(
            lambda: self._store.activate(policy, version, guard, above=self.activation, noted=noted)
        )
        self._has_unstored_activation = given is None
        self._stored_activation = given or self._stored_activation
        await self._follow(Activation(given or number, policy, version))
        if note is not None:
            await self.change_rollout(lambda state: note(state, self.activation))
        return given is not None

    async def change_rollout(self, change: Change) -> None:
        """Changes what is known of the rollout, on top of what another trainer has changed."""
        while not await self.keep_rollout(change(self.rollout)):
            pass  # that is known here now

    async def keep_rollout(
        self, state: RolloutState, of_policy: tuple[KeptPolicy, PolicyRecord] | None = None
    ) -> bool:
        """Replaces what is known of the rollout and, in the same step, of a policy; tells watchers.

        Returns:
            False if another trainer has changed it since it was read here. Then nothing is
            replaced, and what that one made of it is known here now.
        """
        info = None
        if of_policy is not None:
            kept, record = of_policy
            info = StoredPolicy(record.policy, record.version, encode_policy(record))
        is_ours = await self._rollout.keep(state, info)
        if of_policy is not None and is_ours:
            kept.record = record
            if not (kept.is_stored and self._rollout.is_stored):
                await self._try_store(kept)
        await self._tell()
        return is_ours

    async def _tell(self) -> None:
        """Tells the watchers."""
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
        if stored < self._stored_activation:
            # The store lost its memory: it gets back what we still have.
            if not await self._rollout.restore():
                return
            for kept in self._kept.values():
                kept.is_stored = False
        self._stored_activation = stored
        for kept in [kept for kept in self._kept.values() if not kept.is_stored]:
            await self._try_store(kept)
        if self.history and (self._has_unstored_activation or stored < self.activation):
            await self._catch_up(stored)
        elif stored > self.activation:
            self.history = list(history[:-1])
            await self._follow(history[-1])
        elif history[-1:] != self.history[-1:]:
            await self._yield_number(history)
        if await self._rollout.pull():
            await self._tell()

    async def _yield_number(self, history: list[Activation]) -> None:
        """Activates anew what another trainer has activated under the number of ours.

        The store had taken ours in and lost it, as in a failover. Routers tell activations apart by
        their numbers: those that know ours would never hear that the number means another policy.
        """
        # What the store has of a pin came with theirs; what it does not have was ours.
        if await self._attempt(self._store.rollout):
            await self._rollout.pull()
        else:
            await self.change_rollout(lambda state: replace(state, pinned_activation=0))
        ours, self.history = self.history, list(history)
        await self._catch_up(history[-1].activation)
        if self.activation == history[-1].activation:
            self.history = ours  # not done yet: the next look finds both again
            return
        self._log.warning("activation_overtaken", policy=ours[-1].name, version=ours[-1].version)

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
        self._stored_activation = number
        self._log.info("registry_caught_up", activation=number)
        carried = partial(_carried, self.rollout, present.activation, number)
        if number != present.activation:
            await self._follow(Activation(number, present.name, present.version))
        await self.change_rollout(carried)

    async def _follow(self, activation: Activation) -> None:
        """Notes the present activation and tells the watchers."""
        self.history.append(activation)
        del self.history[: -keys.ACTIVATION_HISTORY_LIMIT]
        self._metrics.activation.set(activation.activation)
        await self._tell()

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
        """Returns what is in use, however many policies are published meanwhile.

        That is the active policy, the one a rollback goes to, the one on trial, and the one that
        the gate compares with beside the active one.
        """
        served = [(each.name, each.version) for each in self.history]
        before = [each for each in served if each != served[-1]]
        on_trial = (self.rollout.policy, self.rollout.version)
        anchor = (self.rollout.anchor, self.rollout.anchor_version)
        return {each for each in (*served[-1:], *before[-1:], on_trial, anchor) if each[1]}


def _carried(here: RolloutState, known_as: int, number: int, state: RolloutState) -> RolloutState:
    """Returns a state that has what was known here of an activation, under its number in the store.

    Another trainer may have stored the state meanwhile, without knowing of the activation.
    """
    if here.pinned_activation == known_as:
        state = replace(state, pinned_activation=number)
    if here.watch.activation == known_as == number:
        state = replace(state, watch=here.watch)
    return state
