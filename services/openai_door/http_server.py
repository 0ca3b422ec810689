"""The HTTP server: uvicorn inside the service's own loop, with bounds on what a client may hold.

Uvicorn bounds neither the headers of a request, nor how long they take, nor how long an answer goes
unread; and it answers what it cannot read in plain text.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from services.common.access.tls import Tls, TlsSettings
from services.common.addresses import HostPort, parse_address
from services.common.clock import Clock
from services.common.log import Logger
from services.common.start_error import StartError
from services.openai_door.errors import HttpError, problem_of

CONNECTION = "tiercel.connection"
_BACKLOG = 2_048
_CERTIFICATES_S = 5.0
_MOST_WAITING = 16
"""Requests of one connection that wait while an earlier one is answered: each may take a hundred
times the memory that it has bytes."""
_OFFER = frozenset({b"upgrade", b"http2-settings"})
"""Headers by which a client offers another protocol, and what it says of them in `connection`."""
_REFUSED_RETRY = (b"retry-after", b"1")


class Connection(Protocol):
    """What a request's scope has under `extensions` and `CONNECTION`."""

    def is_receiving(self) -> bool:
        """Says whether a part of the request has not come yet."""
        ...

    def tell_when_lost(self, action: Callable[[], object] | None) -> None:
        """Calls `action` once the client has left, at once if it has; None calls nothing.

        ASGI tells it to whoever waits for the next message, which takes a task for each request.
        """
        ...


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one client may take.

    Attributes:
        max_connections: Most connections at a time.
        max_header_bytes: Largest request line and headers; also what may come beside a body.
        head_timeout_s: Longest time they may take to arrive, and the rest of a body that was
            answered already, seconds.
        keep_alive_s: How long a connection may be idle between requests, seconds.
        write_stall_s: How long a client may not read, seconds.
    """

    max_connections: int
    max_header_bytes: int
    head_timeout_s: float
    keep_alive_s: float
    write_stall_s: float


def bounded_protocol(
    limits: HttpLimits, on_refusal: Callable[[str, int], None]
) -> type[HttpToolsProtocol]:
    """Returns uvicorn's protocol with bounds; `on_refusal` is told code and status of a refusal."""

    class BoundedProtocol(HttpToolsProtocol):
        """One connection."""

        _head_timer: asyncio.TimerHandle | None = None
        _stall_timer: asyncio.TimerHandle | None = None
        _end_timer: asyncio.TimerHandle | None = None
        _answered: RequestResponseCycle | None = None
        _found_wrong: HttpError | None = None
        _offers_other = False
        _on_lost: Callable[[], object] | None = None
        _beside_body_bytes = 0
        _is_in_head = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                self._refuse(HttpError(503, "TOO_MANY_CONNECTIONS", "too many connections"))
            else:
                self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timers()
            answered = self._answered
            if answered is not None and not answered.response_complete:
                # Uvicorn tells the request that came last, which may not be the one under way.
                answered.disconnected = True
                answered.message_event.set()
            super().connection_lost(exc)
            for waiting, _ in self.pipeline:  # it is never begun, so uvicorn never lets go of it
                waiting.on_response = _nothing
            self.pipeline.clear()
            if self._on_lost is not None:
                self._on_lost()

        def tell_when_lost(self, action: Callable[[], object] | None) -> None:
            """See `Connection`."""
            self._on_lost = action
            if action is not None and self not in self.connections:  # it is lost already
                action()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            self._beside_body_bytes += len(data)
            self._unset_keepalive_if_required()
            self._parse(data)
            if self._beside_body_bytes > limits.max_header_bytes and self.parser is not None:
                self._refuse(_headers_too_large(limits.max_header_bytes))
            elif self._head_timer is None and not self.transport.is_closing():
                if self._is_in_head:
                    self._await_head()
                elif self._is_idle:
                    self._await_next()

        def _parse(self, data: bytes) -> None:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self._offers_other:
                    # The parser takes the body for what the other protocol says.
                    head = self._head_without_offer()
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                    self._parse(head + data[offer.args[0] :])
            except httptools.HttpParserError:
                self.send_400_response("")

        def _head_without_offer(self) -> bytes:
            """Returns a head that offers no other protocol: a server may pass over an offer."""
            version = self.parser.get_http_version().encode()
            lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
            for name, value in self.headers:
                if name == b"connection":
                    kept = (each.strip() for each in value.split(b","))
                    value = b", ".join(each for each in kept if each.lower() not in _OFFER)
                if value and name not in _OFFER:
                    lines.append(b"%s: %s" % (name, value))
            return b"\r\n".join((*lines, b"\r\n"))

        def on_message_begin(self) -> None:
            if len(self.pipeline) >= _MOST_WAITING:
                text = f"more than {_MOST_WAITING} requests ahead of their answers"
                self._end_parsing(HttpError(400, "TOO_MANY_REQUESTS_AHEAD", text))
            super().on_message_begin()
            self._is_in_head = True
            # No circle: what a request holds would stay until a collector looks, which is seldom.
            self.scope["extensions"] = {CONNECTION: weakref.proxy(self)}

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._is_in_head:  # what comes after a body is no part of the head
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._is_in_head = False
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
            # One that came in a single piece was not stopped on its way.
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > limits.max_header_bytes:
                self._end_parsing(_headers_too_large(limits.max_header_bytes))
            is_connect = self.parser.get_method() == b"CONNECT"
            self._offers_other = self.parser.should_upgrade() and not is_connect
            if not self._offers_other:  # else it is read anew
                super().on_headers_complete()

        def is_receiving(self) -> bool:
            """See `Connection`."""
            return self.cycle.more_body

        def on_body(self, body: bytes) -> None:
            self._beside_body_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            if self._offers_other:
                return
            self._beside_body_bytes = 0
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
            super().on_message_complete()

        def on_response_complete(self) -> None:
            # With nothing queued the answer was to the request that came last.
            is_unread = not self.pipeline and self.cycle.more_body
            super().on_response_complete()
            if self.transport.is_closing():
                self._bound_end()  # the answer was to be the last one
            elif is_unread:
                # An answer before the end of its request: the rest is discarded, and has to end.
                self._head_timer = self.loop.call_later(limits.head_timeout_s, self._close)

        def timeout_keep_alive_handler(self) -> None:
            self._close()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stall_timer = self.loop.call_later(limits.write_stall_s, self.transport.abort)

        def resume_writing(self) -> None:
            if self._stall_timer is not None:
                self._stall_timer.cancel()
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            found = self._found_wrong
            self._refuse(found or HttpError(400, "BAD_HTTP", "this is no valid HTTP/1.1 request"))

        def _end_parsing(self, error: HttpError) -> NoReturn:
            """Refuses what is being parsed: the parser ends by an exception, and asks for a 400."""
            self._found_wrong = error
            raise error

        def _await_head(self) -> None:
            self._head_timer = self.loop.call_later(limits.head_timeout_s, self._refuse_late_head)

        def _refuse_late_head(self) -> None:
            text = f"the headers took longer than {limits.head_timeout_s:g} s"
            self._refuse(HttpError(408, "HEADERS_TOO_SLOW", text))

        def _await_next(self) -> None:
            self.timeout_keep_alive_task = self.loop.call_later(
                limits.keep_alive_s, self.timeout_keep_alive_handler
            )

        @property
        def _is_idle(self) -> bool:
            """Whether no request is under way; bytes between two take uvicorn's timer away."""
            is_answered = self.cycle is not None and self.cycle.response_complete
            return is_answered and self.timeout_keep_alive_task is None

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self._answered = cycle
            super()._start_asgi_task(cycle, app)

        def _close(self) -> None:
            if not self.transport.is_closing():
                self.transport.close()
                self._bound_end()

        def _bound_end(self) -> None:
            """Bounds how long a client may leave the last bytes unread: TCP would wait for ever."""
            if self._end_timer is None:
                self._end_timer = self.loop.call_later(limits.write_stall_s, self.transport.abort)

        def _stop_timers(self) -> None:
            for timer in (self._head_timer, self._stall_timer, self._end_timer):
                if timer is not None:
                    timer.cancel()

        def _refuse(self, error: HttpError) -> None:
            """Answers without the application, and closes the connection."""
            if self.transport.is_closing():
                return
            self._stop_timers()
            problem = problem_of(error)
            on_refusal(problem.code, problem.status)
            body = problem.body()
            begun = self.cycle is not None and not self.cycle.response_complete
            if not begun:  # else this text would stand in the middle of another answer
                headers = [
                    *self.server_state.default_headers,
                    *((_REFUSED_RETRY,) if problem.status == 503 else ()),
                    (b"content-type", b"application/json"),
                    (b"content-length", b"%d" % len(body)),
                    (b"connection", b"close"),
                ]
                lines = b"".join(b"%s: %s\r\n" % header for header in headers)
                self.transport.write(STATUS_LINE[problem.status] + lines + b"\r\n" + body)
            self._close()

    return BoundedProtocol


def _nothing() -> None:
    """What the end of an answer leads to whose client has left."""


def _headers_too_large(most_bytes: int) -> HttpError:
    text = f"headers are larger than {most_bytes} bytes"
    return HttpError(431, "HEADERS_TOO_LARGE", text)


class HttpServer:
    """A server that the lifecycle starts, drains and stops, as it does gRPC's.

    Args:
        listen: `host:port`; port 0 takes any free one.
        limits: What one client may take.
        tls: The process's certificates; None serves plain text.
        tls_settings: Their files.
        clock: For the time between two looks at the certificates.
        log: Where a certificate that cannot be used is said.
        on_refusal: Told code and status of what is refused before the application.
    """

    def __init__(
        self,
        *,
        listen: str,
        limits: HttpLimits,
        tls: Tls | None,
        tls_settings: TlsSettings,
        clock: Clock,
        log: Logger,
        on_refusal: Callable[[str, int], None] = lambda _code, _status: None,
    ) -> None:
        self.address = parse_address(listen, allow_port_zero=True)
        self.is_serving = False
        self._is_draining = False
        self._tls = tls
        self._tls_settings = tls_settings
        self._clock = clock
        self._log = log
        self._socket: socket.socket | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._context = None if tls is None else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._limits = limits
        self._on_refusal = on_refusal
        self._server: uvicorn.Server | None = None

    @property
    def connection_count(self) -> int:
        """Open connections."""
        return 0 if self._server is None else len(self._server.server_state.connections)

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "http" if self._tls is None else "https"

    def use(self, application: Any) -> None:
        """Takes the ASGI application that answers; needed before `start`."""
        config = uvicorn.Config(
            application,
            http=bounded_protocol(self._limits, self._on_refusal),
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # what is wrong is counted and answered by the application
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=self._limits.keep_alive_s,  # type: ignore[arg-type]  # any number
            backlog=_BACKLOG,
            ssl_context_factory=None if self._tls is None else lambda *_: self._loaded_context(),
        )
        self._server = uvicorn.Server(config)

    def bind(self) -> None:
        """Listens, so that the address is known and its own; raises StartError if it cannot."""
        host, port = self.address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio switches Nagle's algorithm off (40 ms an answer) for sockets that say TCP.
        made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, port))
            made.setblocking(False)
        except OSError as error:
            made.close()
            cause = os.strerror(error.errno) if error.errno else str(error)
            raise StartError(f"cannot listen on {self.address}: {cause.lower()}") from None
        self._socket = made
        self.address = HostPort(host, made.getsockname()[1])

    @property
    def addresses(self) -> dict[str, HostPort]:
        """Where it listens, by what for."""
        return {"http": self.address}

    async def start(self) -> None:
        """Accepts connections."""
        if self._socket is None:
            self.bind()
        server = self._server
        assert self._socket is not None
        assert server is not None, "use() comes first"
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[self._socket])
        self._ticking = asyncio.create_task(server.main_loop())

    async def set_serving(self, serving: bool) -> None:
        """Says whether it serves, for the health pages."""
        self.is_serving = serving and not self._is_draining

    async def enter_drain(self) -> None:
        """Says that it does not serve, for good."""
        self._is_draining, self.is_serving = True, False

    def end_watches(self) -> None:
        """Nothing here is watched for ever."""

    async def stop(self, grace_s: float) -> None:
        """Refuses new connections, lets requests end for `grace_s` seconds, then cancels them."""
        self._is_draining, self.is_serving = True, False
        sockets = [] if self._socket is None else [self._socket]
        if self._ticking is None or self._server is None:
            for each in sockets:
                each.close()
            return
        self._ticking.cancel()
        self._server.config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]  # as above
        await self._server.shutdown(sockets=sockets)

    async def follow_certificates(self) -> None:
        """Shows renewed certificates to connections to come, for ever."""
        if self._tls is None or self._context is None:
            return
        shown = self._tls.current()
        while True:
            await self._clock.sleep(_CERTIFICATES_S)
            found = self._tls.current()
            if found is not shown:
                shown = found
                try:
                    self._loaded_context()
                except OSError as error:
                    # Files that change while they are read are read again at their next change.
                    self._log.error("certificate_not_shown", reason=str(error))

    def _loaded_context(self) -> ssl.SSLContext:
        assert self._context is not None
        files = self._tls_settings
        self._context.load_cert_chain(Path(files.certificate), Path(files.key))
        return self._context
