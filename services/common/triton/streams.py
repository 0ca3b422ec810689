"""Calls of ModelStreamInfer to one Triton, kept open from one request to the next.

A call carries one request at a time. So a request is cancelled as it always was, by its call, which
takes nothing else with it, and whatever a call fails with is its one request's. What is saved is
opening and ending a call for each request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from services.common.tiers.answer import TierChunk
from services.common.tiers.errors import (
    TierDeadlineError,
    TierError,
    TierUnavailableError,
    TierUnknownError,
)
from services.common.triton.answer import AnswerReader
from services.common.triton.errors import error_of_status

Metadata = tuple[tuple[str, str], ...]
REASON_DEADLINE = "DEADLINE_EXCEEDED"
_END_OF_STREAM: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # absent from the type stubs
_MOST_REQUESTS = 1_000
_MOST_IDLE_S = 2.0
"""Triton ends no sooner than the calls that are open to it."""


class Asking:
    """One request under way; its callbacks are called until it ends, is left or cancelled."""

    __slots__ = ("_on_chunk", "_on_end", "_reader", "end_s", "request", "stream", "timer")

    def __init__(
        self,
        request: bytes,
        reader: AnswerReader,
        end_s: float,
        on_chunk: Callable[[TierChunk], None],
        on_end: Callable[[Exception | None], None],
    ) -> None:
        """Takes the request, what reads its answer, its end in the loop's time, and callbacks.

        `on_chunk` gets every piece of the answer; `on_end` is called once, with the failure or None
        after the last piece.
        """
        self.request = request
        self._reader = reader
        self.end_s = end_s
        self.stream: TierStream | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._on_chunk: Callable[[TierChunk], None] | None = on_chunk
        self._on_end: Callable[[Exception | None], None] | None = on_end

    def take(self, message: bytes) -> bool:
        """Hands one message on; returns whether it is the last.

        Raises:
            TierError: The tier failed, or sent what it may not.
        """
        chunk = self._reader.read(message)
        if self._on_chunk is not None:
            self._on_chunk(chunk)
        return chunk.is_final

    @property
    def is_over(self) -> bool:
        """Whether nobody listens any more."""
        return self._on_end is None

    def end(self, failure: Exception | None) -> None:
        """Says once how it ended."""
        on_end, self.stream = self._on_end, None
        self.leave()
        if self.timer is not None:
            self.timer.cancel()
        if on_end is not None:
            on_end(failure)

    def leave(self) -> None:
        """Stops listening; the tier ends the request itself, at its timeout at the latest."""
        self._on_chunk = self._on_end = None

    def cancel(self) -> None:
        """Stops listening and has Triton stop the request at once."""
        stream = self.stream
        self.leave()
        self.end(None)
        if stream is not None:
            stream.cancel()

    def expire(self) -> None:
        """Gives up on a tier that did not end the request at its timeout."""
        stream = self.stream
        self.end(TierDeadlineError(REASON_DEADLINE, "the tier did not end the request in time"))
        if stream is not None:
            stream.cancel()


class TierStreams:
    """The calls that are open to one Triton."""

    def __init__(
        self, open_call: Callable[..., Any], most_idle: int, connection: Callable[[], object]
    ) -> None:
        """Starts without a call.

        Args:
            open_call: The method, bytes in and out.
            most_idle: How many calls wait for a next request at most; 0 keeps none.
            connection: Tells the connection that the next call goes on (`channels.connection_of`).
        """
        self._open_call = open_call
        self._most_idle = most_idle
        self._connection = connection
        self._open: set[TierStream] = set()
        self._idle: deque[TierStream] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        """Returns how many calls there are, idle ones included."""
        return len(self._open)

    @property
    def busy_count(self) -> int:
        """How many calls carry a request now."""
        return len(self._open) - len(self._idle)

    def ask(self, asking: Asking, metadata: Metadata = ()) -> None:
        """Sends a request; one with metadata goes on a call of its own."""
        asking.timer = self._loop.call_at(asking.end_s, asking.expire)
        if self._idle and not metadata:
            # The last one used comes first, so that those too many grow old.
            self._idle.pop().carry(asking)
        else:
            self.ask_anew(asking, metadata)

    def ask_anew(self, asking: Asking, metadata: Metadata = ()) -> None:
        """Sends a request on a new call."""
        is_kept = self._most_idle > 0 and not metadata
        timeout_s = None if is_kept else asking.end_s - self._loop.time()
        connection = self._connection()
        call = self._open_call(timeout=timeout_s, metadata=metadata or None)
        self._open.add(TierStream(self, call, connection, asking, self._loop, is_kept=is_kept))

    def give_back(self, stream: TierStream) -> bool:
        """Returns whether a call is kept for the next request."""
        if len(self._idle) >= self._most_idle or stream.count >= _MOST_REQUESTS:
            return False
        if stream.connection is not self._connection():  # which is closed before long
            return False
        stream.idle_s = self._loop.time()
        self._idle.append(stream)
        if self._sweep is None:
            self._sweep = self._loop.call_later(_MOST_IDLE_S, self._end_old)
        return True

    def _end_old(self) -> None:
        """Ends the calls that nobody has needed for long; comes back while there are others."""
        idle, now_s = self._idle, self._loop.time()
        while idle and idle[0].idle_s <= now_s - _MOST_IDLE_S:
            idle.popleft().retire()
        left_s = idle[0].idle_s + _MOST_IDLE_S - now_s if idle else 0.0
        self._sweep = self._loop.call_later(left_s, self._end_old) if idle else None

    def forget(self, stream: TierStream) -> None:
        """Lets go of a call that has ended."""
        self._open.discard(stream)
        if stream in self._idle:
            self._idle.remove(stream)

    async def close(self) -> None:
        """Ends every call: at once those that carry a request, in order the others."""
        if self._sweep is not None:
            self._sweep.cancel()
        running = [stream.task for stream in self._open]
        for stream in [*self._open]:
            if stream in self._idle:
                stream.retire()
            else:
                stream.cancel()
        self._idle.clear()
        if running:
            await asyncio.wait(running, timeout=1.0)


class TierStream:
    """One call, and the task that writes to it and reads from it."""

    __slots__ = (
        "_asking", "_call", "_is_kept", "_next", "_streams", "connection", "count", "idle_s",
        "task",
    )  # fmt: skip

    def __init__(
        self,
        streams: TierStreams,
        call: Any,
        connection: object,
        asking: Asking,
        loop: asyncio.AbstractEventLoop,
        *,
        is_kept: bool,
    ) -> None:
        self._streams = streams
        self._call = call
        self.connection = connection
        self._asking: Asking | None = asking
        self._is_kept = is_kept
        self._next: asyncio.Future[None] | None = None
        self.count = 0
        self.idle_s = 0.0
        asking.stream = self
        self.task = loop.create_task(self._run())

    def carry(self, asking: Asking) -> None:
        """Takes the next request."""
        asking.stream = self
        self._asking = asking
        self._wake()

    def retire(self) -> None:
        """Ends an idle call in order."""
        self._wake()

    def cancel(self) -> None:
        """Cancels the call."""
        # Not left to the task: one that is cancelled before its first step never runs.
        self._streams.forget(self)
        if self._call is not None:
            self._call.cancel()
        # The task may wait for a connection, which the end of its call does not wake.
        self.task.cancel()

    def _wake(self, _: object = None) -> None:
        if self._next is not None and not self._next.done():
            self._next.set_result(None)

    async def _run(self) -> None:
        """Carries requests until the call ends or is kept no longer."""
        loop, call = asyncio.get_running_loop(), self._call
        if self._is_kept:
            call.add_done_callback(self._wake)
        try:
            while (asking := self._asking) is not None:
                self.count += 1
                failure = await self._carry(asking)
                self._asking = None
                if failure is not None:
                    return
                # Before the caller hears of it, who may have the next request at hand.
                self._next = loop.create_future()
                is_kept = self._is_kept and self._streams.give_back(self)
                asking.end(None)
                if not is_kept:
                    return
                await self._next
                if call.done() and self._asking is None:
                    return
        except asyncio.CancelledError:
            pass  # kept by the task, it would keep its frames, and these the call's connection
        finally:
            self._streams.forget(self)
            if not call.done():
                call.cancel()
            # A circle with its callback, which would keep the connection of a closed channel open.
            self._call = None

    async def _carry(self, asking: Asking) -> Exception | None:
        """Sends one request and hands its answer on; returns what it failed with."""
        call, has_heard = self._call, False
        try:
            await call.write(asking.request)
            if not self._is_kept:
                await call.done_writing()
            is_complete = False
            while not is_complete:
                message = await call.read()
                if message is _END_OF_STREAM:
                    raise await _ended_early(call)
                has_heard = True
                is_complete = asking.take(message)
        except asyncio.CancelledError:
            asking.end(TierUnavailableError("CANCELLED", "the call was cancelled"))
            raise
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # `write` on a call that has failed already: its status says why.
            failure: Exception = await _ended_early(call)
        except Exception as error:
            failure = error
        else:
            return None
        if self.count > 1 and not has_heard and not asking.is_over:
            # The call may have ended while nobody used it; a new one tells.
            self._streams.ask_anew(asking)
        else:
            call.cancel()
            asking.end(failure)
        return failure


async def _ended_early(call: Any) -> TierError:
    """Returns the error of a call that ended without a final response."""
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return TierUnknownError("STREAM_ENDED", "the tier ended the stream without an answer")
    return error_of_status(code, await call.details() or "")
