"""The two routes that answer prompts, as ASGI applications: read, ask a router, write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from opentelemetry.trace import SpanKind

from router.types import RewardKind, SloKind
from services.common.clock import Clock
from services.common.errors import UnavailableError
from services.common.log import Logger
from services.common.mesh_settings import TaskSettings
from services.common.telemetry import SpanIdentity, Telemetry
from services.openai_door import convert
from services.openai_door.errors import STATUS_GONE, Headers, HttpError, Problem, problem_of
from services.openai_door.gate import Gate
from services.openai_door.head import Head
from services.openai_door.http_server import CONNECTION, Connection
from services.openai_door.metrics import DoorMetrics
from services.openai_door.request import Ask
from services.openai_door.routers import Exchange, Metadata, Routers, UnreadableError
from services.openai_door.upload import GoneError, Receive, read_body
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_SOFT, _COMPLETE = RewardKind.SOFT.value, SloKind.COMPLETE_ANSWER.value
_NO_NAMES: Mapping[str, str] = MappingProxyType({})
_GRACE_S = 1.0
"""What a call may take beyond a hard deadline: the router's verdict shall arrive."""
_JSON_TYPE: Headers = ((b"content-type", b"application/json"),)
_EVENTS_TYPE: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies that gather answers keep from it
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What both routes share.

    Attributes:
        routers: Whom to ask.
        gate: Who may ask.
        tasks: The mesh's tasks by name.
        bytes_per_token: For the estimate of prompt tokens.
        max_body_bytes: Largest body.
        body_timeout_s: Longest time it may take to arrive, seconds.
        router_timeout_s: When a call is given up that nothing bounds sooner, seconds.
        clock: For times.
        telemetry: Where spans go.
        metrics: What is counted.
        log: Where bugs are told.
        new_id: Makes the id of a request that brings none.
    """

    routers: Routers
    gate: Gate
    tasks: Mapping[str, TaskSettings]
    bytes_per_token: float
    max_body_bytes: int
    body_timeout_s: float
    router_timeout_s: float
    clock: Clock
    telemetry: Telemetry
    metrics: DoorMetrics
    log: Logger
    new_id: Callable[[], str]

    def limit_s(self, ask: Ask) -> float:
        """Returns when a call is given up, seconds from the request's arrival.

        A router ends by itself what has a deadline. One that is stuck is not waited for where
        nothing that comes after the deadline is worth anything.
        """
        task, wishes = self.tasks.get(ask.task), ask.wishes
        if task is None or task.reward == _SOFT:
            return self.router_timeout_s
        of_tokens = task.slo_kind != _COMPLETE
        if wishes.slo_kind is not None:
            of_tokens = wishes.slo_kind is not SloKind.COMPLETE_ANSWER
        if of_tokens and ask.is_stream:  # it goes on after a token that was late
            return self.router_timeout_s
        deadline_s = task.default_deadline_s
        if wishes.deadline_ms is not None:
            deadline_s = wishes.deadline_ms / 1e3
        return min(self.router_timeout_s, deadline_s + _GRACE_S)


class Generation:
    """One route.

    Args:
        route: Its path.
        read: Reads its requests.
        surroundings: What routes share.
    """

    def __init__(
        self,
        route: str,
        read: Callable[[bytes, Mapping[str, str]], Ask],
        surroundings: Surroundings,
    ) -> None:
        self._route = route
        self._read = read
        self._with = surroundings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; whatever goes wrong is answered too."""
        served = _Served(self._with, self._read, scope, receive, send)
        await served.run(self._route)


class _Served:
    """One request from its headers to the end of its answer."""

    def __init__(
        self,
        surroundings: Surroundings,
        read: Callable[[bytes, Mapping[str, str]], Ask],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._with = surroundings
        self._read = read
        self._scope = scope
        self._connection: Connection = scope["extensions"][CONNECTION]
        self._receive = receive
        self._send = send
        self._start_s = surroundings.clock.monotonic_s()
        self._start_ns = surroundings.clock.wall_ns()
        self._request_id = surroundings.new_id()
        self._ask: Ask | None = None
        self._has_begun = False

    async def run(self, route: str) -> None:
        span = SpanIdentity()
        status, code = 200, ""
        try:
            head = Head.of(self._scope["headers"])
            span = self._with.telemetry.begin(head.trace, f"POST {route}")
            self._request_id = head.request_id or self._request_id
            self._with.gate.check(head.authorization, head.host)
            # Most bodies have come whole with their headers; others are given their time.
            body = await read_body(
                self._receive,
                head,
                self._with.max_body_bytes,
                self._with.body_timeout_s if self._connection.is_receiving() else None,
            )
            ask = self._ask = self._read(body, head.own)
            await self._answer(ask, head, span)
        except GoneError:
            status, code = STATUS_GONE, "client_gone"
        except asyncio.CancelledError:
            # The door stops and its grace is over.
            problem = problem_of(UnavailableError("STOPPING", "this door stops", retry_after_s=1.0))
            status, code = problem.status, problem.code
            await self._refuse(problem)
            raise
        except Exception as error:
            problem = problem_of(error, self._ask.names() if self._ask else _NO_NAMES)
            status, code = problem.status, problem.code
            if problem.is_bug:
                self._with.log.exception("request_failed", error, route=route)
            await self._refuse(problem)
        finally:
            self._account(route, status, code, span)

    def _account(self, route: str, status: int, code: str, span: SpanIdentity) -> None:
        clock, metrics = self._with.clock, self._with.metrics
        metrics.count(route, status, code)
        metrics.observe(route, self._elapsed_s())
        if self._with.telemetry.enabled:
            attributes: dict[str, str | int] = {
                "http.request.method": "POST",
                "http.route": route,
                "http.response.status_code": status,
                "tiercel.request_id": self._request_id,
            }
            if code:
                attributes["error.type"] = code
            self._with.telemetry.emit(
                span,
                f"POST {route}",
                start_ns=self._start_ns,
                end_ns=clock.wall_ns(),
                kind=SpanKind.SERVER,
                attributes=attributes,
                error=code or None,
            )

    def _elapsed_s(self) -> float:
        return self._with.clock.monotonic_s() - self._start_s

    async def _answer(self, ask: Ask, head: Head, span: SpanIdentity) -> None:
        """Has a router answer; raises what went wrong, GoneError if the client left."""
        exchange = Exchange(
            self._with.routers,
            metadata=self._metadata(head, span),
            limit_s=self._with.limit_s(ask),
            start_s=self._start_s,
        )
        envelope = convert.Envelope.of(
            ask, self._request_id, self._start_ns // 1_000_000_000, self._with.bytes_per_token
        )
        self._connection.tell_when_lost(exchange.cancel)
        try:
            if ask.is_stream:
                await self._stream(ask, exchange, envelope.pieces())
            else:
                spec = convert.spec_of(ask, self._request_id)
                reply = await exchange.answer(pb2.GenerateRequest(spec=spec))
                await self._write_whole(
                    200,
                    envelope.whole(reply, self._elapsed_s()),
                    convert.headers_of(reply.completion),
                )
        except asyncio.CancelledError:
            if exchange.is_cancelled:
                raise GoneError from None
            raise
        except UnreadableError:
            raise HttpError(502, "UNREADABLE_ANSWER", "a router's answer cannot be read") from None
        finally:
            self._connection.tell_when_lost(None)
            exchange.cancel()

    async def _stream(self, ask: Ask, exchange: Exchange, pieces: convert.Pieces) -> None:
        """Relays an answer as it comes; the status is decided by the router's first message."""
        request = pb2.GenerateStreamRequest(spec=convert.spec_of(ask, self._request_id))
        piece = await exchange.first_piece(request)
        await self._begin(200, _EVENTS_TYPE)
        before = pieces.first()
        while piece.WhichOneof("event") == "chunk":
            await self._write(before + pieces.text(piece.chunk.text))
            before = b""
            piece = await exchange.next_piece()
        await self._write(before + pieces.last(piece.completion, self._elapsed_s()), is_last=True)

    def _metadata(self, head: Head, span: SpanIdentity) -> Metadata:
        found = span.metadata() if span.trace_id else ()
        if head.authorization:
            found = (*found, ("authorization", head.authorization))
        return found

    async def _begin(self, status: int, headers: Headers) -> None:
        self._has_begun = True
        request_id = (b"x-request-id", self._request_id.encode())
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, request_id],
            }
        )

    async def _write(self, body: bytes, *, is_last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def _write_whole(self, status: int, body: bytes, headers: Headers) -> None:
        length = (b"content-length", b"%d" % len(body))
        await self._begin(status, (*_JSON_TYPE, length, *headers))
        await self._write(body, is_last=True)

    async def _refuse(self, problem: Problem) -> None:
        """Answers with an error: as the answer, or as the last event of a stream that broke."""
        with suppress(RuntimeError):  # the answer was complete already
            if self._has_begun:
                await self._write(convert.error_event(problem.body()), is_last=True)
            else:
                await self._write_whole(problem.status, problem.body(), problem.all_headers())
