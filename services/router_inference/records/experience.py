"""Decision and outcome records: buffered on the path, written to Redis in the background.

The buffer is bounded. The path only appends references; messages are built when a batch is written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice

from services.common.clock import Clock
from services.common.log import Logger
from services.common.state.errors import StateUnavailableError
from services.common.state.experience_stream import ExperienceStream
from services.router_inference.job import Choice
from services.router_inference.records.accounts import RouterMetrics
from services.router_inference.records.convert import OutcomeEntry, RecordBuilder

_BUILT_AT_ONCE = 20


class ExperienceWriter:
    """Buffers records and writes them in batches; what does not fit is dropped and counted."""

    def __init__(
        self,
        *,
        builder: RecordBuilder,
        stream: ExperienceStream | None,
        metrics: RouterMetrics,
        clock: Clock,
        log: Logger,
        buffer_count: int,
        batch_count: int,
        interval_s: float,
        retry_s: float,
    ) -> None:
        """Takes what makes the records, the stream (None: nothing is kept) and bounds.

        `retry_s` is the wait after a failed write.
        """
        self._builder = builder
        self._stream = stream
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._buffer: deque[Choice | OutcomeEntry] = deque()
        self._buffer_count = buffer_count
        self._batch_count = batch_count
        self._interval_s = interval_s
        self._retry_s = retry_s
        self.is_reachable = True
        self.dropped_count = 0

    @property
    def is_kept(self) -> bool:
        """True if records go anywhere."""
        return self._stream is not None

    def add(self, entry: Choice | OutcomeEntry) -> None:
        """Keeps a record for the next batch."""
        if self._stream is None:
            return
        if len(self._buffer) >= self._buffer_count:
            self._buffer.popleft()
            self._drop(1)
        self._buffer.append(entry)

    @property
    def waiting_count(self) -> int:
        """Records not written yet."""
        return len(self._buffer)

    async def run(self) -> None:
        """Writes batches for ever."""
        while self._stream is not None:
            await self._clock.sleep(self._interval_s if self.is_reachable else self._retry_s)
            while self._buffer and await self._write_batch():
                pass
            if not self._buffer:
                await self._check()

    async def flush(self, timeout_s: float) -> None:
        """Writes what is left, for at most `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._buffer and await self._write_batch():
                    pass
        except TimeoutError:
            pass
        if self._buffer:
            self._drop(len(self._buffer))
            self._log.warning("experience_lost", count=len(self._buffer))
            self._buffer.clear()

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
        batch = list(islice(self._buffer, self._batch_count))
        payloads: list[bytes] = []
        for entry in batch:
            try:
                payloads.append(self._builder.payload(entry))
            except Exception as error:  # one record that cannot be written must not keep the rest
                self._drop(1)
                self._log.exception("experience_bad_record", error)
            if len(payloads) % _BUILT_AT_ONCE == 0:
                # Requests wait for the loop meanwhile; they come first.
                await asyncio.sleep(0)
        try:
            if payloads:
                await self._stream.append(payloads)
        except StateUnavailableError as error:
            self._set_reachable(reachable=False, reason=str(error))
            return False
        # `add` may have dropped some of the batch meanwhile; they are written all the same.
        for entry in batch:
            if self._buffer and self._buffer[0] is entry:
                self._buffer.popleft()
        self._metrics.experience_written.inc(len(payloads))
        self._set_reachable(reachable=True, reason="")
        return True

    def _set_reachable(self, *, reachable: bool, reason: str) -> None:
        if reachable != self.is_reachable:
            self.is_reachable = reachable
            if reachable:
                self._log.info("experience_store_back")
            else:
                self._log.warning("experience_store_away", reason=reason)

    def _drop(self, count: int) -> None:
        self.dropped_count += count
        self._metrics.experience_dropped.inc(count)
