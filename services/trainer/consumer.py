"""Experience from the stream into the online run; acknowledged only once it is saved."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from services.common.clock import Clock
from services.common.log import Logger
from services.common.state.errors import StateUnavailableError
from services.common.state.experience_stream import ExperienceStream, StreamEntry
from services.common.state.redis_connection import DeadLetter
from services.trainer.convert import BadRecordError, experience_from
from services.trainer.mesh_view import MeshView
from services.trainer.metrics import TrainerMetrics
from services.trainer.stamps import RouterClocks
from trainer.learning.online.joining import DecisionKey, DecisionRecord, OutcomeRecord
from trainer.learning.online.processes import ProcessRecord

_RECOVERY_MARGIN_S = 0.01
_TOLD_EVERY_S = 60.0
_MOST_ACKED = 5_000
"""Entries acknowledged in one call, which must not take as long as a call may.

After a disk that was full there are as many as the stream holds.
"""
_MOST_LETTERS = 100
"""Most refused entries of one read that are kept; all are counted."""


class Records(NamedTuple):
    """What entries of the stream hold, in the order the learner takes it in."""

    decisions: list[DecisionRecord]
    outcomes: list[OutcomeRecord]
    processes: list[ProcessRecord]


class _Open(NamedTuple):
    """An entry that was taken in and is not acknowledged.

    Attributes:
        key: what settles it.
        read_s: when it was read, monotonic seconds.
        is_outcome: whether it may be of nobody's decision, so that nothing will ever settle it.
    """

    key: DecisionKey
    read_s: float
    is_outcome: bool


class ExperienceConsumer:
    """One consumer of the group; remembers which entries carry which decision."""

    def __init__(
        self,
        *,
        stream: ExperienceStream,
        clock: Clock,
        log: Logger,
        metrics: TrainerMetrics,
        group: str,
        consumer: str,
        read_count: int,
        claim_idle_s: float,
        orphan_s: float,
        mesh: MeshView,
        tasks: Collection[str],
    ) -> None:
        """Takes the stream, limits, and what the mesh is.

        After `orphan_s` seconds an outcome whose decision has not come is given up.
        """
        self._stream = stream
        self._clock = clock
        self._clocks = RouterClocks(clock)
        self._log = log
        self._metrics = metrics
        self._group = group
        self._consumer = consumer
        self._read_count = read_count
        self._claim_idle_s = claim_idle_s
        self._orphan_s = orphan_s
        self._mesh = mesh
        self._tasks = tasks
        self._told_due_s = -math.inf
        self._open: dict[str, _Open] = {}
        self._entries_of: dict[DecisionKey, list[str]] = defaultdict(list)
        # Keys of open entries that are decisions, or what a process told: a save settles them.
        self._owned: set[DecisionKey] = set()
        self._to_ack: list[str] = []
        self._claim_due_s = 0.0
        self._is_recovering = True
        self._recovery_start_s: float | None = None
        self.is_reachable = True

    @property
    def open_count(self) -> int:
        """Entries taken in and not acknowledged."""
        return len(self._open)

    async def read(self, block_s: float) -> Records | None:
        """Returns new records, waiting up to `block_s` for the first; None if the store is away."""
        try:
            entries: list[StreamEntry] = []
            is_again = False
            if self._is_recovering:
                entries = await self._recover()
            elif self._clock.monotonic_s() >= self._claim_due_s:
                entries = await self._claim()
                is_again = bool(entries)
            if not entries:
                entries = await self._stream.read(
                    self._group, self._consumer, self._read_count, block_s
                )
            found = await self._decode(entries, is_again)
        except StateUnavailableError as error:
            if self.is_reachable:
                self._log.warning("experience_unreachable", reason=str(error))
            self.is_reachable = False
            # A read whose answer was lost has delivered its entries: they are asked for before
            # anything newer. A claim whose answer was lost has made its entries young again.
            self._is_recovering = True
            self._recovery_start_s = None
            return None
        if not self.is_reachable:
            self._log.info("experience_reachable")
        self.is_reachable = True
        return found

    def forget(self) -> None:
        """Forgets what is open, as after the loss of the worker that held it; it is read again."""
        self._open.clear()
        self._entries_of.clear()
        self._owned.clear()
        self._is_recovering = True
        self._recovery_start_s = None

    async def settle(self, keys: Sequence[DecisionKey]) -> None:
        """Acknowledges what is saved; what cannot be acknowledged now is at the next call."""
        for key in keys:
            self._owned.discard(key)
            for entry_id in self._entries_of.pop(key, ()):
                self._open.pop(entry_id, None)
                self._to_ack.append(entry_id)
        self._give_up_orphans()
        while self._to_ack:
            some = self._to_ack[:_MOST_ACKED]
            try:
                await self._stream.ack(self._group, some)
            except StateUnavailableError:
                return  # they come again and are recognised as settled
            self._metrics.entries_acked.inc(len(some))
            del self._to_ack[: len(some)]

    async def _recover(self) -> list[StreamEntry]:
        """Returns what a former life had read and not settled, before anything newer is read.

        Newer records would overtake it, and what comes behind its time is of no use.
        """
        if self._recovery_start_s is None:
            self._recovery_start_s = self._clock.monotonic_s()
        while True:
            # What this recovery has claimed itself is younger than the recovery.
            idle_s = self._clock.monotonic_s() - self._recovery_start_s + _RECOVERY_MARGIN_S
            claimed = await self._stream.claim_stale(
                self._group, self._consumer, idle_s, self._read_count
            )
            if not claimed:
                self._is_recovering = False
                self._claim_due_s = self._clock.monotonic_s() + self._claim_idle_s
                return []
            entries = [entry for entry in claimed if entry.entry_id not in self._open]
            if entries:
                return entries

    async def _claim(self) -> list[StreamEntry]:
        entries = await self._stream.claim_stale(
            self._group, self._consumer, self._claim_idle_s, self._read_count
        )
        if len(entries) < self._read_count:
            self._claim_due_s = self._clock.monotonic_s() + self._claim_idle_s
        return [entry for entry in entries if entry.entry_id not in self._open]

    async def _decode(self, entries: Sequence[StreamEntry], is_again: bool) -> Records:
        """Returns the records of entries; what is refused is set aside.

        What speaks of a router or a candidate nobody has heard of is left for later, since it may
        be new; when it comes `again` and is still unknown it is refused.
        """
        records = Records([], [], [])
        refused: list[tuple[StreamEntry, str]] = []
        now_s = self._clock.monotonic_s()
        wall_s = self._clocks.now_s()
        has_asked = False
        for entry in entries:
            self._metrics.entries_read.inc()
            try:
                record, stamp_s, candidates = experience_from(
                    entry.payload, now_s=wall_s, tasks=self._tasks, is_known=self._mesh.knows
                )
            except BadRecordError as error:
                refused.append((entry, str(error)))
                continue
            problem = self._mesh.problem(record.key[:2], stamp_s, candidates)
            if problem and not has_asked:
                has_asked = True
                await self._mesh.refresh()
                problem = self._mesh.problem(record.key[:2], stamp_s, candidates)
            if problem:
                if is_again and self._mesh.is_fresh:
                    refused.append((entry, problem))
                continue
            is_outcome = isinstance(record, OutcomeRecord)
            self._open[entry.entry_id] = _Open(record.key, now_s, is_outcome)
            self._entries_of[record.key].append(entry.entry_id)
            if not is_outcome:
                self._owned.add(record.key)
            if isinstance(record, DecisionRecord):
                records.decisions.append(self._clocks.placed(record, wall_s))
            elif isinstance(record, OutcomeRecord):
                records.outcomes.append(record)
            else:
                records.processes.append(record)
        await self._refuse(refused)
        return records

    async def _refuse(self, refused: Sequence[tuple[StreamEntry, str]]) -> None:
        """Sets entries aside; what cannot be set aside now comes again."""
        if not refused:
            return
        now_s = self._clock.monotonic_s()
        if now_s >= self._told_due_s:
            self._told_due_s = now_s + _TOLD_EVERY_S
            self._log.warning("experience_refused", count=len(refused), reason=refused[0][1])
        letters = [DeadLetter(entry.payload, reason) for entry, reason in refused]
        try:
            await self._stream.set_aside(letters[:_MOST_LETTERS])
        except StateUnavailableError:
            return
        self._metrics.entries_bad.inc(len(refused))
        self._to_ack += [entry.entry_id for entry, _ in refused]

    def _give_up_orphans(self) -> None:
        """Lets go of outcomes whose decision never came, and counts them.

        What is open for another reason waits for its save, however long that takes.
        """
        limit_s = self._clock.monotonic_s() - self._orphan_s
        for entry_id, (key, read_s, is_outcome) in list(self._open.items()):
            if read_s > limit_s:
                break  # in order of reading
            if not is_outcome or key in self._owned:
                continue
            del self._open[entry_id]
            ids = self._entries_of.get(key, [])
            if entry_id in ids:
                ids.remove(entry_id)
            if not ids:
                self._entries_of.pop(key, None)
            self._metrics.records_dropped.labels(reason="alone").inc()
            self._to_ack.append(entry_id)
