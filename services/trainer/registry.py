"""The policy registry: what may be published, activated and rolled back, and who is told.

Where policies are kept, and what happens while Redis is away, is `mirror.py`.

What is known of the rollout is changed by

| call | what | if another trainer has changed it meanwhile |
|---|---|---|
| `keep_rollout` | a step that was judged of a state | AbortedError: it is judged anew |
| `keep_watch` | how the watch stands | AbortedError, if it was the watch that changed |
| `change_rollout` | pin, or the gate's anchor | is made on top of that |
| a note with `promote` | pin and anchor, or the watch, in one step with an activation | the same |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from router.dqn.snapshot import Snapshot, SnapshotError, load_snapshot
from router.policies.dqn import DqnPolicy
from services.common.clock import Clock
from services.common.errors import AbortedError, FailedPreconditionError, NotFoundError
from services.common.log import Logger
from services.common.state.errors import VersionMismatchError
from services.common.state.policy_store import Activation, PolicyStore
from services.trainer.metrics import TrainerMetrics
from services.trainer.mirror import Change, KeptPolicy, Note, PolicyMirror
from services.trainer.model import (
    MOST_STEPS,
    PolicyRecord,
    RolloutState,
    RolloutStep,
    Stage,
    WatchState,
)
from services.trainer.rollout_mirror import with_beside

_SETTINGS = Activation(0, "", "")
"""What serves before anything is activated: the policy of each router's settings."""


@dataclass(frozen=True, slots=True)
class ActivePolicy:
    """The active policy.

    Attributes:
        activation: number of the activation, above 0.
        record: what is active.
        snapshot: its snapshot; empty for built-in policies.
    """

    activation: int
    record: PolicyRecord
    snapshot: bytes


ActivationNote = Callable[[RolloutState, ActivePolicy, tuple[str, str]], RolloutState]
"""What is to be known of the rollout once a policy is active, noted in one step with that.

It is made of what is known, of what has become active, and of name and version of what that one
replaced, as `PolicyRegistry.replaced` has them.
"""


class PolicyRegistry:
    """Publishes, lists, activates and watches policies."""

    def __init__(
        self,
        *,
        store: PolicyStore,
        built_in: Sequence[str],
        clock: Clock,
        log: Logger,
        metrics: TrainerMetrics,
        kept_limit: int = 50,
    ) -> None:
        """Takes the store and the names that need no snapshot.

        `kept_limit` bounds the snapshots kept in memory.
        """
        self._mirror = PolicyMirror(
            store=store, check=self._checked, log=log, metrics=metrics, kept_limit=kept_limit
        )
        self._built_in = tuple(built_in)
        self._clock = clock
        self._log = log
        self._metrics = metrics
        self._lock = asyncio.Lock()

    @property
    def activation(self) -> int:
        """Number of the present activation, 0 if there never was one."""
        return self._mirror.activation

    @property
    def rollout(self) -> RolloutState:
        """The rollout under way, else the last one."""
        return self._mirror.rollout

    @property
    def is_degraded(self) -> bool:
        """True while Redis is away and memory serves alone."""
        return self._mirror.is_degraded

    async def publish(self, blob: bytes, description: str = "") -> PolicyRecord:
        """Checks a snapshot and puts it in as PROPOSED; one that is there already is left alone.

        Raises:
            SnapshotError: It is none that a router would take; it is counted and not stored.
        """
        snapshot = self._checked(blob)
        record = PolicyRecord(
            policy=snapshot.policy,
            version=snapshot.version,
            stage=Stage.PROPOSED,
            feature_schema=snapshot.feature_schema,
            publish_ns=self._clock.wall_ns(),
            transition_count=snapshot.transition_count,
            description=description,
            scores=snapshot.scores,
        )
        async with self._lock:
            known = await self._mirror.find(record.policy, record.version)
            if known is not None:
                return known.record
            await self._mirror.add(record, blob)
        self._metrics.snapshots_published.inc()
        self._log.info("snapshot_published", policy=record.policy, version=record.version)
        return record

    async def forget(self, policy: str, version: str) -> None:
        """Takes a policy out again, unless somebody has used or tried it."""
        async with self._lock:
            await self._mirror.pull()
            found = await self._mirror.read(policy, version)
            if found is None or self.is_degraded:
                return
            served = {each[1:] for each in self._mirror.history}
            is_unused = self._staged(found.record).stage in (Stage.PROPOSED, Stage.REJECTED)
            if is_unused and not found.record.steps and (policy, version) not in served:
                await self._mirror.drop(policy, version)

    async def get(self, policy: str, version: str = "") -> tuple[PolicyRecord, bytes]:
        """Returns a policy and its snapshot; see `_resolve` for an empty version.

        Raises:
            NotFoundError: There is no such policy.
        """
        async with self._lock:
            await self._mirror.pull()
            found = await self._resolve(policy, version)
            return self._staged(found.record), found.snapshot

    async def policies(self) -> list[PolicyRecord]:
        """Returns built-in policies, then snapshots from newest to oldest, with their stages."""
        async with self._lock:
            await self._mirror.pull()
            records = await self._mirror.records()
        built_in = [PolicyRecord.built_in(name) for name in self._built_in]
        return [self._staged(record) for record in (*built_in, *records)]

    async def active(self) -> ActivePolicy | None:
        """Returns the active policy, None if nothing was ever activated or it is gone."""
        async with self._lock:
            await self._mirror.pull()
            return await self._active()

    async def promote(
        self,
        policy: str,
        version: str = "",
        expected_activation: int | None = None,
        *,
        force_reason: str = "",
        note: ActivationNote | None = None,
    ) -> ActivePolicy:
        """Activates a policy; an empty version means the newest of that name not rejected.

        Args:
            policy: its name.
            version: its version.
            expected_activation: the present activation; None for any.
            force_reason: why a rejected one is activated all the same.
            note: what is noted in one step with it.

        Raises:
            NotFoundError: There is no such policy.
            FailedPreconditionError: It was rejected, and no reason is given.
            AbortedError: The present activation is not the expected one.
        """
        async with self._lock:
            await self._mirror.pull()
            found = await self._resolve(policy, version)
            record = found.record
            if record.stage is not Stage.REJECTED:
                return await self._activate(found, expected_activation, note)
            if not force_reason:
                raise _rejected(record)
            active = await self._activate(found, expected_activation, note)
            self._log.warning(
                "rejected_policy_forced",
                policy=record.policy,
                version=record.version,
                rejection=record.rejection,
                reason=force_reason,
            )
            forced = replace(record, stage=Stage.PROPOSED, force_reason=force_reason)
            await self._mirror.change(found, forced)
            return replace(active, record=self._staged(forced))

    def expect(self, activation: int | None) -> None:
        """Raises AbortedError if an activation is given and is not the present one."""
        if activation is not None and activation != self.activation:
            raise _raced(activation, self.activation)

    async def rollback(self, reason: str = "") -> ActivePolicy:
        """Activates what served before the present policy: another one, or that of the settings.

        Raises:
            FailedPreconditionError: Nothing else ever served.
        """
        async with self._lock:
            await self._mirror.pull()
            found = await self._last_good()
            if found is None:
                raise FailedPreconditionError(
                    "nothing served before the present policy", reason="NO_PREVIOUS_POLICY"
                )
            present = self._mirror.history[-1]
            self._log.warning(
                "policy_rolled_back", policy=present.name, version=present.version, reason=reason
            )
            return await self._activate(found, self.activation, _without_anchor)

    async def withdraw(self, active: ActivePolicy, reason: str) -> None:
        """Undoes an activation: what served before serves again.

        Does nothing if another one came since.
        """
        record = active.record
        await self.reject(record.policy, record.version, reason)
        async with self._lock:
            if self.activation != active.activation:
                return
            self._log.warning(
                "policy_withdrawn", policy=record.policy, version=record.version, reason=reason
            )
            found = await self._last_good()
            assert found is not None  # at least the settings' policy served before
            await self._activate(found, self.activation)

    async def reject(self, policy: str, version: str, why: str) -> None:
        """Marks a policy as one that gate or routers refused."""
        await self._mark(policy, version, Stage.REJECTED, why)

    async def accept(self, policy: str, version: str) -> None:
        """Takes a rejection back, as once the gate lets the policy pass."""
        await self._mark(policy, version, Stage.PROPOSED, "")

    async def keep_rollout(
        self, state: RolloutState, step: RolloutStep | None = None
    ) -> RolloutState:
        """Keeps where a rollout stands and returns it as it is kept.

        A step is noted with its policy. One to REJECTED rejects the policy; one to PROPOSED, where
        a rollout ends without a verdict, leaves a rejection; any other takes it back.

        Raises:
            AbortedError: The rollout, or what is pinned, has changed since that of which `state`
                was made.
        """
        async with self._lock:
            present = self._mirror.rollout
            if state.revision != present.revision:
                raise _overtaken(present)
            changed = None
            kept = await self._mirror.read(state.policy, state.version) if step else None
            if step is not None and kept is not None:
                marked = _with_step(kept.record, step)
                if step.stage is Stage.REJECTED:
                    marked = replace(marked, stage=Stage.REJECTED, rejection=step.reason)
                elif step.stage is not Stage.PROPOSED:
                    marked = replace(marked, stage=Stage.PROPOSED, rejection="")
                changed = kept, marked
            # What is beside a rollout others change, each by a method of its own.
            if not await self._mirror.keep_rollout(with_beside(state, present), changed):
                raise _overtaken(self._mirror.rollout)
            return self._mirror.rollout

    async def change_rollout(self, change: Change) -> None:
        """Changes what is known of the rollout, whatever others have made of it meanwhile."""
        async with self._lock:
            await self._mirror.change_rollout(change)

    async def anchor(self) -> tuple[PolicyRecord, bytes] | None:
        """Returns what the gate compares with beside the active policy, and its snapshot.

        None if there is nothing, or if it was rejected or is gone.
        """
        async with self._lock:
            await self._mirror.pull()
            state = self._mirror.rollout
            if not state.anchor:
                return None
            found = await self._find(state.anchor, state.anchor_version)
            if found is None or found.record.stage is Stage.REJECTED:
                return None
            return found.record, found.snapshot

    @property
    def present(self) -> tuple[str, str]:
        """Name and version of what is active; empty for the policy of the routers' settings."""
        return self._mirror.history[-1][1:] if self._mirror.history else ("", "")

    @property
    def replaced(self) -> tuple[str, str]:
        """Name and version of what served before the present activation.

        Empty for the policy of the routers' settings.
        """
        history = self._mirror.history
        return history[-2][1:] if len(history) > 1 else ("", "")

    async def keep_watch(
        self, watch: WatchState, step: RolloutStep, *, replaces: WatchState
    ) -> None:
        """Keeps how the watch over an active policy stands, and notes the step with the policy.

        Raises:
            AbortedError: Another trainer has changed the watch that it `replaces`.
        """
        async with self._lock:
            kept = await self._mirror.read(watch.policy, watch.version)
            changed = None if kept is None else (kept, _with_step(kept.record, step))
            is_kept = False
            while not is_kept:
                present = self._mirror.rollout
                if present.watch != replaces:
                    raise _overtaken(present)
                is_kept = await self._mirror.keep_rollout(replace(present, watch=watch), changed)

    async def note_step(self, policy: str, version: str, step: RolloutStep) -> None:
        """Notes a step with a policy."""
        async with self._lock:
            kept = await self._mirror.read(policy, version)
            if kept is not None:
                await self._mirror.change(kept, _with_step(kept.record, step))

    async def watch_rollout(self) -> AsyncIterator[tuple[RolloutState, bytes]]:
        """Yields the rollout and its policy's snapshot at once, and whenever either changes."""
        seen: RolloutState | None = None
        while True:
            async with self._mirror.changed:
                while self._mirror.rollout == seen:
                    await self._mirror.changed.wait()
            async with self._lock:
                state = self._mirror.rollout
                found = None
                if state.is_running:
                    found = await self._mirror.find(state.policy, state.version)
            if state.is_running and found is None:
                # Its snapshot cannot be had now; routers go on with what they had.
                await self._clock.sleep(1.0)
                continue
            seen = state
            yield state, found.snapshot if found is not None else b""

    async def _mark(self, policy: str, version: str, stage: Stage, rejection: str) -> None:
        async with self._lock:
            kept = await self._mirror.read(policy, version)
            if kept is not None:
                marked = replace(kept.record, stage=stage, rejection=rejection, force_reason="")
                if marked != kept.record:
                    await self._mirror.change(kept, marked)

    async def watch(self, after_activation: int) -> AsyncIterator[ActivePolicy]:
        """Yields the active policy if the caller has another one, then every newer one.

        One without a name means that nothing is active any more.
        """
        seen = after_activation
        while True:
            async with self._mirror.changed:
                # Not "newer": a registry that was lost or is at its last number starts anew.
                while self.activation in (0, seen):
                    await self._mirror.changed.wait()
            async with self._lock:
                active = await self._active() or self._withdrawn()
            if active is None:
                # Its snapshot cannot be had now; the next change or poll tries again.
                await self._clock.sleep(1.0)
                continue
            seen = active.activation
            yield active

    async def poll(self, interval_s: float) -> AsyncIterator[bool]:
        """Looks for activations of others and for a Redis that came back, for ever.

        Yields after every look whether the store answered.
        """
        while True:
            async with self._lock:
                await self._mirror.pull()
            yield not self.is_degraded
            await self._clock.sleep(interval_s)

    # -- inside the lock

    async def _activate(
        self, found: KeptPolicy, expected: int | None, note: ActivationNote | None = None
    ) -> ActivePolicy:
        record = found.record
        noted = None if note is None else self._noted(note, found)
        # The store compares with its own number; ours may be ahead of it after an outage.
        self.expect(expected)
        try:
            is_stored = await self._mirror.activate(record.policy, record.version, expected, noted)
        except VersionMismatchError as error:
            raise _raced(error.expected, error.found) from error
        self._metrics.activations.inc()
        self._log.info(
            "policy_activated",
            policy=record.policy,
            version=record.version,
            activation=self.activation,
            stored=is_stored,
        )
        return ActivePolicy(self.activation, self._staged(record), found.snapshot)

    def _noted(self, note: ActivationNote, found: KeptPolicy) -> Note:
        """Returns what is noted of the rollout, by the number that the activation gets."""
        replaced = self.present

        def noted(state: RolloutState, number: int) -> RolloutState:
            active = ActivePolicy(number, self._staged(found.record), found.snapshot)
            return note(state, active, replaced)

        return noted

    async def _active(self) -> ActivePolicy | None:
        if not self._mirror.history or not self._mirror.history[-1].name:
            return None
        present = self._mirror.history[-1]
        found = await self._find(present.name, present.version)
        if found is None:
            return None
        return ActivePolicy(present.activation, self._staged(found.record), found.snapshot)

    def _withdrawn(self) -> ActivePolicy | None:
        """Returns what stands for nothing being active, None if something is."""
        if not self._mirror.history or self._mirror.history[-1].name:
            return None
        return ActivePolicy(self.activation, PolicyRecord.built_in(""), b"")

    async def _last_good(self) -> KeptPolicy | None:
        """Returns what served last before the present policy and is still there, not rejected.

        Before the first activation the policy of the settings did, and so it does after each
        without a name.
        """
        await self._mirror.records()  # so that what others have rejected is known
        history = (_SETTINGS, *self._mirror.history)
        for each in reversed(history):
            if each[1:] != history[-1][1:]:
                found = await self._find(each.name, each.version)
                if found is not None and found.record.stage is not Stage.REJECTED:
                    return found
        return None

    async def _resolve(self, policy: str, version: str) -> KeptPolicy:
        """Returns a policy; an empty version means its newest that was not rejected.

        Where all were, it is the newest of them, for the caller to hear why.
        """
        records = await self._mirror.records()
        own = [record for record in records if record.policy == policy]
        versions = [record.version for record in own]
        if not version and versions and policy not in self._built_in:
            good = [record.version for record in own if record.stage is not Stage.REJECTED]
            version = (good or versions)[0]
        found = await self._find(policy, version)
        if found is None:
            names = sorted({record.policy for record in records})
            known = [f"{policy}@{each}" for each in versions] or [*self._built_in, *names]
            raise NotFoundError("policy", f"{policy}@{version}" if version else policy, known)
        return found

    async def _find(self, policy: str, version: str) -> KeptPolicy | None:
        if policy in ("", *self._built_in) and not version:
            return KeptPolicy(PolicyRecord.built_in(policy), b"", is_stored=True)
        return await self._mirror.find(policy, version)

    def _checked(self, blob: bytes) -> Snapshot:
        """Returns a snapshot that routers will take; SnapshotError, counted, if they will not."""
        try:
            return DqnPolicy(load_snapshot(blob)).snapshot
        except SnapshotError as error:
            self._metrics.snapshots_refused.labels(error.reason).inc()
            raise

    def _staged(self, record: PolicyRecord) -> PolicyRecord:
        """Returns the record with the stage that follows from the activations."""
        key = (record.policy, record.version)
        rollout = self._mirror.rollout
        history = [(a.name, a.version) for a in self._mirror.history]
        if history[-1:] == [key]:
            return replace(record, stage=Stage.ACTIVE)
        if rollout.is_under_way and key == (rollout.policy, rollout.version):
            return replace(record, stage=rollout.stage)
        if record.stage is Stage.PROPOSED and key in history:
            return replace(record, stage=Stage.RETIRED)
        return record


def _with_step(record: PolicyRecord, step: RolloutStep) -> PolicyRecord:
    """Returns a record with one more step."""
    return replace(record, steps=(*record.steps, step)[-MOST_STEPS:])


def _without_anchor(
    state: RolloutState, _active: ActivePolicy, replaced: tuple[str, str]
) -> RolloutState:
    """Returns a state whose anchor is not what somebody has rolled back."""
    if (state.anchor, state.anchor_version) != replaced:
        return state
    return replace(state, anchor="", anchor_version="")


def _overtaken(found: RolloutState) -> AbortedError:
    stage = "paused" if found.is_paused else found.stage.name.lower()
    watch, told = found.watch, []
    if found.number:
        told.append(f"rollout {found.number} of {found.policy} {found.version} is {stage}")
    if watch.activation:
        how = watch.stage.name.lower().replace("_", " ")
        told.append(f"the watch over {watch.policy} {watch.version} is {how}")
    return AbortedError(
        f"what is under way has changed meanwhile: {', '.join(told) or 'nothing is'}; look again "
        "(tiercel policy list) and retry",
        reason="ROLLOUT_RACED",
    )


def _rejected(record: PolicyRecord) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{record.policy} {record.version} was rejected: {record.rejection}; to activate it all "
        "the same takes a reason",
        reason="POLICY_REJECTED",
        metadata={"policy": record.policy, "policy_version": record.version},
    )


def _raced(expected: int, found: int) -> AbortedError:
    return AbortedError(
        f"activation: expected {expected}, found {found}; read again and retry",
        reason="ACTIVATION_RACED",
        metadata={"expected": str(expected), "found": str(found)},
    )
