"""Decision and outcome records: buffered on the path, written to Redis in the background.

The buffer is bounded in records and in seconds, so a router that dies takes no more than that with
it. The path only appends references; messages are built when a batch is written. What had to be
dropped is counted by reason and told to the trainer with the next batch.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections import Counter, deque
from typing import NamedTuple

from services.common.clock import Clock
from services.common.log import Logger
from services.common.state.errors import StateUnavailableError
from services.common.state.experience_stream import ExperienceStream
from services.router_inference.job import Choice
from services.router_inference.records.convert import OutcomeEntry, RecordBuilder
from services.router_inference.records.metrics import RouterMetrics

_BUILT_AT_ONCE = 20
_LOG_EVERY_S = 60.0


class DropReason(enum.Enum):
    """Why a record was dropped unwritten; the values are labels of telemetry."""

    AGE = "age"
    """It had waited for as long as any may."""
    FULL = "full"
    """The buffer was full."""
    STOPPED = "stopped"
    """The process ended and could not write it any more."""
    BAD = "bad"
    """It cannot be written at all."""


class _Waiting(NamedTuple):
    """A record that waits, since when, monotonic seconds, and features beside a decision."""

    since_s: float
    entry: Choice | OutcomeEntry
    features: bytes


class ExperienceWriter:
    """Buffers records and writes them in batches; what it must drop is counted and told."""

    def __init__(
        self,
        *,
        builder: RecordBuilder,
        stream: ExperienceStream | None,
        metrics: RouterMetrics,
        clock: Clock,
        log: Logger,
        buffer_count: int,
        buffer_s: float,
        batch_count: int,
        interval_s: float,
        retry_s: float,
    ) -> None:
        """Takes what makes the records, the stream (None: nothing is kept) and bounds.

        A record waits for `buffer_s` seconds at most; `retry_s` is the wait after a failed write.
        """
        self._builder = builder
        self._stream = stream
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._buffer: deque[_Waiting] = deque()
        self._writing: list[_Waiting] = []
        self._buffer_count = buffer_count
        self._buffer_s = buffer_s
        self._batch_count = batch_count
        self._interval_s = interval_s
        self._retry_s = retry_s
        self._dropped_decisions = 0
        self._dropped_outcomes = 0
        # What the trainer is to be told: that the process has begun, what it dropped, that it ends.
        self._is_start_untold = False
        self._is_start_told = False
        self._is_gap_untold = False
        self._is_ending = False
        self._log_due_s = -math.inf
        self._is_gap_logged = False
        self.is_reachable = True
        self.dropped: Counter[str] = Counter()
        """Records dropped since the start, by reason."""
        for reason in DropReason:  # told as 0: nobody sees a count rise that began as 1
            metrics.experience_dropped.labels(reason=reason.value)

    @property
    def is_kept(self) -> bool:
        """True if records go anywhere."""
        return self._stream is not None

    @property
    def waiting_count(self) -> int:
        """Records not written yet."""
        return len(self._buffer) + len(self._writing)

    @property
    def dropped_count(self) -> int:
        """Records dropped since the start."""
        return self.dropped.total()

    def oldest_s(self) -> float:
        """Returns for how long the oldest record has waited, 0 if none waits."""
        waiting = self._writing or self._buffer
        return max(0.0, self._clock.monotonic_s() - waiting[0].since_s) if waiting else 0.0

    @property
    def takes_features(self) -> bool:
        """True if records are written before long, so that features need not be found again.

        While the store is away they would fill the memory.
        """
        return self._stream is not None and self.is_reachable

    def add(self, entry: Choice | OutcomeEntry, features: bytes = b"") -> None:
        """Keeps a record for the next batch.

        Args:
            entry: what it tells.
            features: what a decision's network read, as the record has it; empty if not at hand.
        """
        if self._stream is None:
            return
        now_s = self._clock.monotonic_s()
        self._buffer.append(_Waiting(now_s, entry, features))
        self._bound(now_s)

    async def run(self) -> None:
        """Writes batches for ever, and first that the process has begun."""
        self._is_start_untold = True
        while self._stream is not None:
            await self._clock.sleep(self._interval_s if self.is_reachable else self._retry_s)
            while self._has_news and await self._write_batch():
                pass
            self._bound(self._clock.monotonic_s())
            if not self._buffer:
                await self._check()

    async def flush(self, timeout_s: float) -> None:
        """Writes what is left, and that this is the end, for at most `timeout_s` seconds."""
        self._is_ending = True
        try:
            async with asyncio.timeout(timeout_s):
                while self._has_news and await self._write_batch():
                    pass
        except TimeoutError:
            pass
        if self._buffer:
            self._log.warning("experience_lost", count=len(self._buffer))
            while self._buffer:
                self._drop(self._buffer.popleft().entry, DropReason.STOPPED)

    @property
    def _has_news(self) -> bool:
        """True if there is something to write: records, or something to tell."""
        is_end_untold = self._is_ending and self._is_start_told
        return self._stream is not None and bool(
            self._buffer or self._is_gap_untold or self._is_start_untold or is_end_untold
        )

    async def _check(self) -> None:
        """Asks whether the store is back when there is nothing to write that would show it."""
        if self.is_reachable or self._stream is None:
            return
        try:
            await self._stream.count()
        except StateUnavailableError:
            return
        self._set_reachable(reachable=True, reason="")

    async def _write_batch(self) -> bool:
        """Writes the oldest records; returns False, keeping them, if the store is away."""
        assert self._stream is not None
        count = min(self._batch_count, len(self._buffer))
        batch = self._writing = [self._buffer.popleft() for _ in range(count)]
        is_written = False
        try:
            payloads = await self._payloads(batch)
            is_end = self._is_ending and not self._buffer
            told = self._dropped_decisions, self._dropped_outcomes
            if self._is_gap_untold or self._is_start_untold or is_end:
                payloads.append(self._builder.process(*told, is_end, self._clock.wall_ns()))
            if payloads:
                await self._stream.append(payloads)
            is_written = True
        except StateUnavailableError as error:
            self._set_reachable(reachable=False, reason=str(error))
            return False
        finally:
            # Cancelled, or refused: whether the store has them or not, they are written once more.
            self._writing = []
            if not is_written:
                self._buffer.extendleft(reversed(batch))
        self._metrics.experience_written.inc(len(payloads))
        self._is_start_untold = False
        self._is_start_told = not is_end  # after the end there is nothing left to tell
        self._on_told(told)
        self._set_reachable(reachable=True, reason="")
        return True

    async def _payloads(self, batch: list[_Waiting]) -> list[bytes]:
        """Returns the records as messages; takes out of the batch what cannot be one."""
        payloads: list[bytes] = []
        while len(payloads) < len(batch):
            _, entry, features = batch[len(payloads)]
            try:
                payloads.append(self._builder.payload(entry, features))
            except Exception as error:  # one record that cannot be written must not keep the rest
                del batch[len(payloads)]
                self._drop(entry, DropReason.BAD)
                self._log.exception("experience_bad_record", error)
            if len(payloads) % _BUILT_AT_ONCE == 0:
                # Requests wait for the loop meanwhile; they come first.
                await asyncio.sleep(0)
        return payloads

    def _on_told(self, told: tuple[int, int]) -> None:
        """Notes that the trainer will learn of so many dropped decisions and outcomes."""
        if not self._is_gap_untold or told != (self._dropped_decisions, self._dropped_outcomes):
            return
        self._is_gap_untold = False
        if self._is_gap_logged:
            self._is_gap_logged = False
            counts = {f"dropped_{reason}": count for reason, count in self.dropped.items()}
            self._log.warning(
                "experience_gap", dropped_decisions=told[0], dropped_outcomes=told[1], **counts
            )

    def _set_reachable(self, *, reachable: bool, reason: str) -> None:
        if reachable != self.is_reachable:
            self.is_reachable = reachable
            if reachable:
                self._log.info("experience_store_back")
            else:
                self._log.warning("experience_store_away", reason=reason)

    def _bound(self, now_s: float) -> None:
        """Lets go of what has waited for too long, and of what is too much."""
        buffer, since_s = self._buffer, now_s - self._buffer_s
        while buffer and buffer[0].since_s < since_s:
            self._drop(buffer.popleft().entry, DropReason.AGE)
        while len(buffer) > self._buffer_count:
            self._drop(buffer.popleft().entry, DropReason.FULL)

    def _drop(self, entry: Choice | OutcomeEntry, reason: DropReason) -> None:
        if isinstance(entry, OutcomeEntry):
            self._dropped_outcomes += 1
        else:
            self._dropped_decisions += 1
        now_s = self._clock.monotonic_s()
        if now_s >= self._log_due_s:
            self._log_due_s, self._is_gap_logged = now_s + _LOG_EVERY_S, True
            self._log.warning("experience_dropped", reason=reason.value)
        self._is_gap_untold = True
        self.dropped[reason.value] += 1
        self._metrics.experience_dropped.labels(reason=reason.value).inc()
