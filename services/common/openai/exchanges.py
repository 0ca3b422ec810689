"""Requests under way to a server that speaks OpenAI: an answer of a tier, and a page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.common.openai.answer import Completion
from services.common.openai.connection import Carrier
from services.common.openai.errors import error_of_status
from services.common.openai.events import EventReader
from services.common.tiers.answer import TierChunk
from services.common.tiers.errors import (
    REASON_DEADLINE,
    TierDeadlineError,
    TierError,
    TierUnavailableError,
    bad_answer,
)

MOST_ANSWER_BYTES = 4 * 1024 * 1024
"""Largest answer in one piece."""
_MOST_EVENT_BYTES = 4_096
"""What a token may take in a stream: its text in JSON, and the words around it."""
_SPARE_BYTES = 128 * 1024
_MOST_ERROR_BYTES = 16 * 1024
_MOST_PAGE_BYTES = 4 * 1024 * 1024
_OK = 200


class _Body:
    """A body that is read as a whole, to a limit."""

    __slots__ = ("_most_bytes", "data")

    def __init__(self, most_bytes: int) -> None:
        self.data = bytearray()
        self._most_bytes = most_bytes

    def take(self, piece: bytes) -> None:
        """Takes a piece; raises TierUnavailableError beyond the limit."""
        self.data += piece
        if len(self.data) > self._most_bytes:
            raise bad_answer(f"a body of more than {self._most_bytes} bytes")


class AskingOpenAI:
    """One answer under way; its callbacks are called until it ends, is left or cancelled."""

    __slots__ = (
        "_body", "_completion", "_events", "_is_stream", "_on_chunk", "_on_end", "_status",
        "carrier", "most_bytes", "timer",
    )  # fmt: skip

    def __init__(
        self,
        max_output_tokens: int,
        on_chunk: Callable[[TierChunk], None],
        on_end: Callable[[Exception | None], None],
        *,
        is_stream: bool,
    ) -> None:
        """Takes how many tokens were asked for, and who is told of the answer.

        `on_chunk` gets every piece; `on_end` is called once, with the failure or None after the
        last piece.
        """
        self.carrier: Carrier | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.most_bytes = _SPARE_BYTES + (
            max_output_tokens * _MOST_EVENT_BYTES if is_stream else MOST_ANSWER_BYTES
        )
        self._completion = Completion(max_output_tokens)
        self._events = EventReader()
        self._body = _Body(MOST_ANSWER_BYTES)
        self._is_stream = is_stream
        self._status = 0
        self._on_chunk: Callable[[TierChunk], None] | None = on_chunk
        self._on_end: Callable[[Exception | None], None] | None = on_end

    # ---- what the attempt calls ----

    def leave(self) -> None:
        """Closes the connection: the server knows no deadline, and ends the request by that."""
        self.cancel()

    def cancel(self) -> None:
        """Stops listening and closes the connection, by which the server stops working on it."""
        self._end(None, tell=False)
        if self.carrier is not None:
            self.carrier.abort()

    def expire(self) -> None:
        """Ends it at its deadline."""
        self._end(TierDeadlineError(REASON_DEADLINE, "the answer was not complete in time"))
        if self.carrier is not None:
            self.carrier.abort()

    # ---- what the connection calls ----

    @property
    def is_over(self) -> bool:
        """Whether nobody listens any more."""
        return self._on_end is None

    def on_head(self, status: int, content_type: bytes) -> None:
        """Takes status and type of content."""
        self._status = status
        if status != _OK:
            self._body = _Body(2 * _MOST_ERROR_BYTES)
            return
        wanted = b"text/event-stream" if self._is_stream else b"application/json"
        if content_type.split(b";")[0].strip() != wanted:
            shown = content_type[:60].decode("ascii", "replace") or "none"
            raise bad_answer(f"content of the type {shown}, not {wanted.decode()}")

    def on_body(self, piece: bytes) -> None:
        """Takes a piece of the body."""
        if self._status != _OK:
            self._body.take(piece)
            if len(self._body.data) > _MOST_ERROR_BYTES:
                raise self._refusal()
        elif not self._is_stream:
            self._body.take(piece)
        else:
            for data in self._events.feed(piece):
                if self.is_over:
                    return
                self._push(self._completion.chunk(data))

    def on_complete(self) -> None:
        """Takes that the message is complete."""
        if self.is_over:
            return
        if self._status != _OK:
            raise self._refusal()
        if not self._is_stream:
            self._push(self._completion.chunk(bytes(self._body.data)))
        if not self.is_over:
            self._push(self._completion.end())

    def fail(self, error: Exception) -> None:
        """Takes what it failed with."""
        self._end(error)

    def _refusal(self) -> TierError:
        return error_of_status(self._status, bytes(self._body.data[:_MOST_ERROR_BYTES]))

    def _push(self, chunk: TierChunk | None) -> None:
        if chunk is None:
            return
        if self._on_chunk is not None:
            self._on_chunk(chunk)
        if chunk.is_final:
            self._end(None)

    def _end(self, failure: Exception | None, *, tell: bool = True) -> None:
        on_end = self._on_end
        self._on_chunk = self._on_end = None
        if self.timer is not None:
            self.timer.cancel()
        if tell and on_end is not None:
            on_end(failure)


class Page:
    """One page under way, read as a whole."""

    __slots__ = ("_body", "_found", "_status", "carrier", "most_bytes")

    def __init__(self) -> None:
        self.carrier: Carrier | None = None
        self.most_bytes = _MOST_PAGE_BYTES + _SPARE_BYTES
        self._body = _Body(_MOST_PAGE_BYTES)
        self._status = 0
        self._found: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    async def read(self, timeout_s: float) -> tuple[int, bytes]:
        """Returns status and body.

        Raises:
            TierError: It did not come, or not in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._found
        except TimeoutError:
            raise TierDeadlineError(REASON_DEADLINE, f"no answer within {timeout_s:g} s") from None
        finally:
            if self.carrier is not None:
                self.carrier.abort()

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._found.done()

    def on_head(self, status: int, content_type: bytes) -> None:
        """Takes the status."""
        self._status = status

    def on_body(self, piece: bytes) -> None:
        """Takes a piece of the body."""
        self._body.take(piece)

    def on_complete(self) -> None:
        """Takes that the page is complete."""
        if not self.is_over:
            self._found.set_result((self._status, bytes(self._body.data)))

    def fail(self, error: Exception) -> None:
        """Takes what it failed with."""
        if not self.is_over:
            known = error if isinstance(error, TierError) else None
            self._found.set_exception(known or TierUnavailableError("UNAVAILABLE", repr(error)))
