"""The policy registry: Redis if it answers, memory if not, one picture for the callers.

Everything published or activated is kept in memory as well. While Redis is away the memory serves
alone and says so (`is_degraded`); when Redis is back, what it lacks is written to it and the policy
activated in the meantime is activated there. Activation numbers never fall for our watchers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from router.dqn.snapshot import SnapshotError, load_snapshot
from services.common.clock import Clock
from services.common.errors import AbortedError, FailedPreconditionError, NotFoundError
from services.common.log import Logger
from services.common.state.errors import StateUnavailableError, VersionMismatchError
from services.common.state.policy_store import Activation, PolicyStore
from services.trainer.convert import decode_policy, encode_policy
from services.trainer.metrics import TrainerMetrics
from services.trainer.records import PolicyRecord, Stage

T = TypeVar("T")

_MOST_CATCH_UP = 10_000


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


@dataclass(slots=True)
class _Kept:
    record: PolicyRecord
    snapshot: bytes
    is_stored: bool


class PolicyRegistry:
    """Publishes, lists, activates and watches policies."""

    def __init__(
        self,
        *,
        store: PolicyStore,
        built_in: Sequence[str],
        feature_schema: str,
        clock: Clock,
        log: Logger,
        metrics: TrainerMetrics,
        kept_limit: int = 50,
    ) -> None:
        """Takes the store, the names that need no snapshot, and the schema snapshots must have.

        `kept_limit` bounds the snapshots kept in memory.
        """
        self._store = store
        self._built_in = tuple(built_in)
        self._feature_schema = feature_schema
        self._clock = clock
        self._log = log
        self._metrics = metrics
        self._kept_limit = kept_limit
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._history: list[Activation] = []
        self._unstored_activation = False
        self._changed = asyncio.Condition()
        self._lock = asyncio.Lock()
        self.is_degraded = False

    @property
    def activation(self) -> int:
        """Number of the present activation, 0 if there never was one."""
        return self._history[-1].activation if self._history else 0

    async def publish(self, blob: bytes, description: str = "") -> PolicyRecord:
        """Checks a snapshot and puts it in as PROPOSED; one that is there already is left alone.

        Raises:
            SnapshotError: It is damaged or has another schema; it is counted and not stored.
        """
        try:
            snapshot = load_snapshot(blob, self._feature_schema)
        except SnapshotError as error:
            self._metrics.snapshots_refused.labels(error.reason).inc()
            raise
        scores = {k: float(v) for k, v in snapshot.evaluation.items() if _is_number(v)}
        record = PolicyRecord(
            policy=snapshot.policy,
            version=snapshot.version,
            stage=Stage.PROPOSED,
            feature_schema=snapshot.feature_schema,
            publish_ns=self._clock.wall_ns(),
            transition_count=snapshot.transition_count,
            description=description,
            scores=scores,
        )
        async with self._lock:
            known = await self._find(record.policy, record.version)
            if known is not None:
                return known.record
            kept = _Kept(record, blob, is_stored=False)
            self._kept[record.policy, record.version] = kept
            self._trim()
            await self._try_store(kept)
        self._metrics.snapshots_published.inc()
        self._log.info("snapshot_published", policy=record.policy, version=record.version)
        return record

    async def policies(self) -> list[PolicyRecord]:
        """Returns built-in policies, then snapshots from newest to oldest, with their stages."""
        async with self._lock:
            await self._pull()
            records = {key: kept.record for key, kept in self._kept.items()}
            stored = await self._attempt(self._store.infos)
            for blob in stored or ():
                record = decode_policy(blob)
                records.setdefault((record.policy, record.version), record)
        newest_first = sorted(records.values(), key=lambda r: -r.publish_ns)
        built_in = [PolicyRecord.built_in(name) for name in self._built_in]
        return [self._staged(record) for record in (*built_in, *newest_first)]

    async def active(self) -> ActivePolicy | None:
        """Returns the active policy, None if nothing was ever activated or it is gone."""
        async with self._lock:
            await self._pull()
            return await self._active()

    async def promote(
        self, policy: str, version: str = "", expected_activation: int | None = None
    ) -> ActivePolicy:
        """Activates a policy; an empty version means the newest of that name.

        Raises:
            NotFoundError: There is no such policy.
            AbortedError: The present activation is not the expected one.
            SnapshotError: Its stored snapshot is damaged or has another schema.
        """
        async with self._lock:
            await self._pull()
            found = await self._resolve(policy, version)
            if found.snapshot:
                try:
                    load_snapshot(found.snapshot, self._feature_schema)
                except SnapshotError as error:
                    self._metrics.snapshots_refused.labels(error.reason).inc()
                    raise
            return await self._activate(found, expected_activation)

    async def rollback(self, reason: str = "") -> ActivePolicy:
        """Activates the policy that was active before the present one.

        Raises:
            FailedPreconditionError: There is none, or it is gone.
        """
        async with self._lock:
            await self._pull()
            present = self._history[-1] if self._history else None
            before = _previous(self._history)
            if present is None or before is None:
                raise FailedPreconditionError(
                    "no policy was active before the present one", reason="NO_PREVIOUS_POLICY"
                )
            try:
                found = await self._resolve(before.name, before.version)
            except NotFoundError as error:
                raise FailedPreconditionError(
                    f"the previous policy {before.name} {before.version} is gone",
                    reason="PREVIOUS_POLICY_GONE",
                ) from error
            self._log.warning("policy_rolled_back", policy=present.name, reason=reason)
            return await self._activate(found, present.activation)

    async def reject(self, policy: str, version: str, description: str) -> None:
        """Marks a proposed policy as one that failed its gate."""
        async with self._lock:
            kept = await self._find(policy, version)
            if kept is not None:
                kept.record = replace(kept.record, stage=Stage.REJECTED, description=description)
                kept.is_stored = False
                await self._try_store(kept)

    async def watch(self, after_activation: int) -> AsyncIterator[ActivePolicy]:
        """Yields the active policy if it is newer than the caller's, then every newer one.

        A caller that knows a number we never gave (the registry was lost) gets the present one.
        """
        seen = after_activation
        if 0 < self.activation < seen:
            seen = 0
        while True:
            async with self._changed:
                while self.activation <= seen:
                    await self._changed.wait()
            async with self._lock:
                active = await self._active()
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
                await self._pull()
            yield not self.is_degraded
            await self._clock.sleep(interval_s)

    # -- inside the lock

    async def _activate(self, found: _Kept, expected: int | None) -> ActivePolicy:
        record = found.record
        # Redis compares with its own number; ours may be ahead of it after an outage.
        if expected is not None and expected != self.activation:
            raise _raced(expected, self.activation)
        guard = self.activation if expected is not None else None
        number: int | None
        try:
            number = await self._attempt(
                lambda: self._store.activate(record.policy, record.version, guard)
            )
        except VersionMismatchError as error:
            raise _raced(error.expected, error.found) from error
        self._unstored_activation = number is None
        await self._set_active(
            Activation(number or self.activation + 1, record.policy, record.version)
        )
        self._metrics.activations.inc()
        self._log.info(
            "policy_activated",
            policy=record.policy,
            version=record.version,
            activation=self.activation,
            stored=number is not None,
        )
        return ActivePolicy(self.activation, self._staged(record), found.snapshot)

    async def _set_active(self, activation: Activation) -> None:
        self._history.append(activation)
        del self._history[:-100]
        self._metrics.activation.set(activation.activation)
        async with self._changed:
            self._changed.notify_all()

    async def _pull(self) -> None:
        """Brings memory and store together; does nothing while the store is away."""
        history = await self._attempt(self._store.history)
        if history is None:
            return
        stored = history[-1].activation if history else 0
        if stored < self.activation and not self._unstored_activation:
            # The store lost its memory: it gets back what we still have.
            for kept in self._kept.values():
                kept.is_stored = False
        for kept in [kept for kept in self._kept.values() if not kept.is_stored]:
            await self._try_store(kept)
        if self._history and (self._unstored_activation or stored < self.activation):
            await self._catch_up(stored)
        elif stored > self.activation:
            self._history = list(history[:-1])
            await self._set_active(history[-1])

    async def _catch_up(self, stored: int) -> None:
        """Activates our policy in a store that missed it, until its numbers pass ours."""
        present = self._history[-1]
        number: int | None = stored
        for _ in range(_MOST_CATCH_UP):
            number = await self._attempt(
                lambda: self._store.activate(present.name, present.version)
            )
            if number is None:
                return
            if number > present.activation:
                break
        self._unstored_activation = False
        self._log.info("registry_caught_up", activation=number)
        await self._set_active(Activation(number or 0, present.name, present.version))

    async def _active(self) -> ActivePolicy | None:
        if not self._history:
            return None
        present = self._history[-1]
        found = await self._find(present.name, present.version)
        if found is None:
            return None
        return ActivePolicy(present.activation, self._staged(found.record), found.snapshot)

    async def _resolve(self, policy: str, version: str) -> _Kept:
        if not version and policy not in self._built_in:
            versions = [
                record
                for record in [kept.record for kept in self._kept.values()]
                + [decode_policy(b) for b in await self._attempt(self._store.infos) or ()]
                if record.policy == policy
            ]
            if versions:
                version = max(versions, key=lambda r: r.publish_ns).version
        found = await self._find(policy, version)
        if found is None:
            stored = [decode_policy(b) for b in await self._attempt(self._store.infos) or ()]
            names = {r.policy for r in stored} | {name for name, _ in self._kept}
            known = [*self._built_in, *sorted(names)]
            if policy in known and version:
                known = [f"{r.policy}@{r.version}" for r in stored if r.policy == policy] or [
                    f"{name}@{v}" for name, v in self._kept if name == policy
                ]
            raise NotFoundError("policy", f"{policy}@{version}" if version else policy, known)
        return found

    async def _find(self, policy: str, version: str) -> _Kept | None:
        if policy in self._built_in and not version:
            return _Kept(PolicyRecord.built_in(policy), b"", is_stored=True)
        kept = self._kept.get((policy, version))
        if kept is not None:
            return kept
        stored = await self._attempt(lambda: self._store.get(policy, version))
        if stored is None:
            return None
        kept = _Kept(decode_policy(stored[0]), stored[1] or b"", is_stored=True)
        self._kept[policy, version] = kept
        self._trim()
        return kept

    def _staged(self, record: PolicyRecord) -> PolicyRecord:
        """Returns the record with the stage that follows from the activations."""
        key = (record.policy, record.version)
        if self._history and (self._history[-1].name, self._history[-1].version) == key:
            return replace(record, stage=Stage.ACTIVE)
        if record.stage is Stage.PROPOSED and any(
            (a.name, a.version) == key for a in self._history
        ):
            return replace(record, stage=Stage.RETIRED)
        return record

    async def _try_store(self, kept: _Kept) -> None:
        record = kept.record

        async def put() -> bool:
            await self._store.put(
                encode_policy(record), kept.snapshot or None, record.policy, record.version
            )
            return True

        kept.is_stored = bool(await self._attempt(put))

    async def _attempt(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Returns the store's answer, None while it is away."""
        try:
            answer = await call()
        except StateUnavailableError as error:
            if not self.is_degraded:
                self._log.warning("registry_degraded", reason=str(error))
            self.is_degraded = True
            self._metrics.store_reachable.set(0)
            return None
        if self.is_degraded:
            self._log.info("registry_recovered")
        self.is_degraded = False
        self._metrics.store_reachable.set(1)
        return answer

    def _trim(self) -> None:
        """Drops the oldest stored snapshots beyond the bound; the active one stays."""
        needed = {(a.name, a.version) for a in self._history[-2:]}
        for key in list(self._kept):
            if len(self._kept) <= self._kept_limit:
                return
            if key not in needed and self._kept[key].is_stored:
                del self._kept[key]


def _previous(history: Sequence[Activation]) -> Activation | None:
    """Returns the last activation of another policy than the present one."""
    if not history:
        return None
    present = (history[-1].name, history[-1].version)
    return next((a for a in reversed(history) if (a.name, a.version) != present), None)


def _raced(expected: int, found: int) -> AbortedError:
    return AbortedError(
        f"activation: expected {expected}, found {found}; read again and retry",
        reason="ACTIVATION_RACED",
        metadata={"expected": str(expected), "found": str(found)},
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
