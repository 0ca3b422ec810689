"""One HTTP/1.1 connection, kept open from one request to the next; it carries one at a time."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, cast

import httptools

from services.common.tiers.errors import TierUnavailableError, bad_answer

MOST_HEAD_BYTES = 32 * 1024
"""Largest status line and headers."""
_LEFT_BODY_S = 1.0
"""How long the end of a message may take whose content is complete, seconds."""
_LOWEST_FINAL_STATUS = 200


class Carrier(Protocol):
    """What carries a request, or is about to."""

    def abort(self) -> None:
        """Stops carrying it; the server knows by the closed connection that nobody waits."""
        ...


class Exchange(Protocol):
    """What is told of the answer to one request.

    Each of these may raise a TierError, which ends the connection.
    """

    most_bytes: int
    """Most bytes that the answer may take, headers and all."""
    carrier: Carrier | None
    """What carries it; None before and after."""

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for more of the answer."""
        ...

    def on_head(self, status: int, content_type: bytes) -> None:
        """Takes status and type of content."""
        ...

    def on_body(self, piece: bytes) -> None:
        """Takes a piece of the body."""
        ...

    def on_complete(self) -> None:
        """Takes that the message is complete."""
        ...

    def fail(self, error: Exception) -> None:
        """Takes what the answer failed with; does nothing where it is over."""
        ...


class Owner(Protocol):
    """Who keeps connections."""

    def give_back(self, connection: Connection) -> None:
        """Takes a connection that can carry another request."""
        ...

    def forget(self, connection: Connection) -> None:
        """Lets go of a connection that is closed."""
        ...

    def send_anew(self, exchange: Exchange, request: bytes) -> None:
        """Sends a request on a new connection."""
        ...


class Connection(asyncio.Protocol):
    """One connection; its owner hands it requests."""

    __slots__ = (
        "_body", "_content_type", "_encoding", "_exchange", "_has_head", "_has_heard",
        "_head_bytes", "_is_complete", "_is_kept", "_left_bytes", "_loop", "_message_count",
        "_owner", "_parser", "_request", "_told_head", "_transport", "_unread", "count", "idle_s",
    )  # fmt: skip

    def __init__(self, owner: Owner) -> None:
        """Takes who keeps it."""
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._exchange: Exchange | None = None
        self._unread: asyncio.TimerHandle | None = None
        self.count = 0
        self.idle_s = 0.0

    # ---- what its owner calls ----

    def carry(self, exchange: Exchange, request: bytes) -> None:
        """Sends a request, whose answer the exchange is told."""
        self._exchange, self._request = exchange, request
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._content_type = self._encoding = b""
        self._has_heard = self._has_head = self._told_head = False
        self._is_complete = self._is_kept = False
        self._head_bytes = self._message_count = 0
        self._left_bytes = exchange.most_bytes
        self.count += 1
        exchange.carrier = self
        assert self._transport is not None
        self._transport.write(request)

    def abort(self) -> None:
        """Closes the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # ---- what the event loop calls ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        """Takes bytes."""
        exchange = self._exchange
        if exchange is None:  # nothing was asked
            self.abort()
            return
        self._has_heard = True
        try:
            self._read(data)
            self._tell(exchange)
        except Exception as error:  # a TierError, or what a listener failed with
            self._exchange = exchange.carrier = None
            self.abort()
            exchange.fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Takes the end of the connection."""
        exchange, self._exchange = self._exchange, None
        self._owner.forget(self)
        if self._unread is not None:
            self._unread.cancel()
        self._parser = None  # a circle with its callbacks
        if exchange is None or exchange.is_over:
            return
        exchange.carrier = None
        if self.count > 1 and not self._has_heard:
            # It may have been closed while nobody used it; a new connection tells.
            self._owner.send_anew(exchange, self._request)
        else:
            exchange.fail(TierUnavailableError("UNAVAILABLE", "the server closed the connection"))

    def _read(self, data: bytes) -> None:
        """Takes apart what came.

        Raises:
            TierUnavailableError: It is no HTTP, or not within bounds.
        """
        if not self._has_head:
            self._head_bytes += len(data)
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise bad_answer("longer than the tokens asked for can be")
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            raise bad_answer("what is no HTTP") from None
        if not self._has_head and self._head_bytes > MOST_HEAD_BYTES:
            raise bad_answer(f"headers of more than {MOST_HEAD_BYTES} bytes")

    def _tell(self, exchange: Exchange) -> None:
        """Hands on what came; the connection is given back before its end is told."""
        if not self._has_head:
            return
        if not self._told_head:
            self._told_head = True
            if self._encoding not in (b"", b"identity"):
                shown = self._encoding[:40].decode("ascii", "replace")
                raise bad_answer(f"an answer in the encoding {shown}")
            exchange.on_head(self._parser.get_status_code(), self._content_type)
        if self._body:
            body = b"".join(self._body)
            self._body.clear()
            exchange.on_body(body)
        if self._is_complete:
            self._release(exchange)
            try:
                exchange.on_complete()
            except Exception as error:  # the answer's fault, or its listener's; not of the bytes
                exchange.fail(error)
        elif exchange.is_over and self._unread is None:
            self._unread = self._loop.call_later(_LEFT_BODY_S, self.abort)

    def _release(self, exchange: Exchange) -> None:
        self._exchange = exchange.carrier = None
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        if self._is_kept and self._message_count == 1:
            self._owner.give_back(self)
        else:
            self.abort()

    # ---- what the parser calls ----

    def on_message_begin(self) -> None:
        """Counts messages: one is asked for."""
        self._message_count += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps what says how to read the body."""
        if self._is_complete:
            return
        name = name.lower()
        if name == b"content-type":
            self._content_type = value.lower()
        elif name == b"content-encoding":
            self._encoding = value.lower()

    def on_headers_complete(self) -> None:
        """Takes the end of the headers; an interim answer, as of early hints, is none yet."""
        self._has_head = self._parser.get_status_code() >= _LOWEST_FINAL_STATUS

    def on_body(self, body: bytes) -> None:
        """Keeps a piece of the body."""
        if not self._is_complete:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Takes the end of the message."""
        if not self._has_head:
            self._message_count -= 1
            self._content_type = self._encoding = b""
        elif not self._is_complete:
            self._is_complete = True
            self._is_kept = self._parser.should_keep_alive()
