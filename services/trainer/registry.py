"""The policy registry: what may be published, activated and rolled back, and who is told.

Where policies are kept, and what happens while Redis is away, is `mirror.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from router.dqn.snapshot import Snapshot, SnapshotError, load_snapshot
from router.policies.dqn import DqnPolicy
from services.common.clock import Clock
from services.common.errors import AbortedError, FailedPreconditionError, NotFoundError
from services.common.log import Logger
from services.common.state.errors import VersionMismatchError
from services.common.state.policy_store import Activation, PolicyStore
from services.trainer.metrics import TrainerMetrics
from services.trainer.mirror import KeptPolicy, PolicyMirror
from services.trainer.model import (
    MOST_STEPS,
    PolicyRecord,
    RolloutState,
    RolloutStep,
    Stage,
    WatchState,
)

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
    ) -> ActivePolicy:
        """Activates a policy; an empty version means the newest of that name not rejected.

        `force_reason` says why a rejected one is activated all the same.

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
                return await self._activate(found, expected_activation)
            if not force_reason:
                raise _rejected(record)
            active = await self._activate(found, expected_activation)
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
            return await self._activate(found, self.activation)

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

    async def keep_rollout(self, state: RolloutState, step: RolloutStep | None = None) -> None:
        """Keeps where a rollout stands; a step is noted with its policy.

        A step to REJECTED rejects the policy, one to anywhere else takes a rejection back.
        """
        async with self._lock:
            watch = self._mirror.rollout.watch  # which `keep_watch` alone changes
            await self._mirror.keep_rollout(replace(state, watch=watch))
            kept = await self._mirror.find(state.policy, state.version) if step else None
            if step is None or kept is None:
                return
            is_rejected = step.stage is Stage.REJECTED
            marked = replace(
                kept.record,
                stage=Stage.REJECTED if is_rejected else Stage.PROPOSED,
                rejection=step.reason if is_rejected else "",
                steps=(*kept.record.steps, step)[-MOST_STEPS:],
            )
            await self._mirror.change(kept, marked)

    @property
    def replaced(self) -> tuple[str, str]:
        """Name and version of what served before the present activation.

        Empty for the policy of the routers' settings.
        """
        history = self._mirror.history
        return history[-2][1:] if len(history) > 1 else ("", "")

    async def keep_watch(self, watch: WatchState, step: RolloutStep) -> None:
        """Keeps how the watch over an active policy stands, and notes the step with the policy."""
        async with self._lock:
            await self._mirror.keep_rollout(replace(self._mirror.rollout, watch=watch))
            kept = await self._mirror.find(watch.policy, watch.version)
            if kept is not None:
                steps = (*kept.record.steps, step)[-MOST_STEPS:]
                await self._mirror.change(kept, replace(kept.record, steps=steps))

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
            kept = await self._mirror.find(policy, version)
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

    async def _activate(self, found: KeptPolicy, expected: int | None) -> ActivePolicy:
        record = found.record
        # The store compares with its own number; ours may be ahead of it after an outage.
        self.expect(expected)
        try:
            is_stored = await self._mirror.activate(record.policy, record.version, expected)
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
