"""The asyncio client: generate, stream, route and report, over one or several routers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, Unpack

import grpc

from tiercel import convert, errors, forks
from tiercel.arguments import check, check_api_key
from tiercel.calls import answer_of
from tiercel.channels import (
    CONNECTIONS,
    Connection,
    PathLike,
    RouterPool,
    checked,
    credentials_of,
    is_loopback,
)
from tiercel.options import GenerateOptions, Outcome, RouteOptions
from tiercel.results import Answer, Chunk, Ticket
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb_grpc
from tiercel.timing import timing
from tiercel.tracing import client_span

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

DEFAULT_TIMEOUT_S = 300.0
"""When a call without a deadline of its own is given up: far beyond a task's deadline."""
GRACE_S = 0.25
"""What a call may take beyond its deadline: the router's verdict shall arrive, not a timeout."""
WAIT_SLACK_S = 5.0
"""How long after a call's limit gRPC may take to end it before the client does."""

_END: Any = object()
_OF_TOKENS = ("first_token", "per_token")

ReplyT = TypeVar("ReplyT")
Metadata = tuple[tuple[str, str], ...]


class AsyncClient:
    """Asynchronous client; use it as ``async with AsyncClient(["127.0.0.1:7410"]) as client``.

    Calls go to the routers in turn. A router that is not reached is skipped, and the call is tried
    once on each of the others while its time lasts; nothing is tried again once a router has
    answered. Where an OpenTelemetry SDK is configured each call is a client span, and its W3C trace
    context goes along.
    """

    def __init__(
        self,
        addresses: Sequence[str] | str = "127.0.0.1:7410",
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connections: int = CONNECTIONS,
        root_certificates: PathLike | None = None,
        certificate: PathLike | None = None,
        key: PathLike | None = None,
        api_key: str | None = None,
        tracer_provider: TracerProvider | None = None,
        use_proxy: bool = False,
    ) -> None:
        """Opens channels lazily; nothing is sent yet.

        Args:
            addresses: Router addresses, host:port, or one address.
            timeout_s: When a call without a deadline of its own is given up, above 0 s. It is no
                deadline: the task's holds. Set it above the longest deadline of your tasks.
            connections: Connections to each address, used in turn. More of them spread calls more
                evenly over the processes behind an address; a router of one process needs only 1.
            root_certificates: PEM file of the roots that signed the routers' certificates: calls go
                by TLS. Plain text without.
            certificate: PEM file of the caller's own certificate, where routers ask for one.
            key: PEM file of its key.
            api_key: Key that the mesh's operator gave you, sent with every call.
            tracer_provider: Makes the client spans; None means OpenTelemetry's global one.
            use_proxy: Whether the proxies of the environment (``http_proxy``, ``grpc_proxy``, ...)
                are used; without it calls go to the routers themselves.

        Raises:
            TypeError: An argument is of a wrong type; the message names it.
            ValueError: No address or one that is none, no connection, a timeout that is not above
                0, a certificate without its key or without roots, or an API key that no header can
                hold or that would cross a network in plain text.
            OSError: A file cannot be read.
            ClientUnusableError: This process was forked off while a client was open.
        """
        if forks.has_open_parent():
            raise errors.unusable("FORKED_WHILE_OPEN")
        check(timeout_s=timeout_s)
        if not timeout_s > 0:
            raise ValueError(f"timeout_s: must be above 0, got {timeout_s}")
        credentials = None
        if root_certificates is not None:
            credentials = credentials_of(root_certificates, certificate, key)
        elif certificate is not None or key is not None:
            raise ValueError("root_certificates: is needed beside certificate and key")
        lines = [addresses] if isinstance(addresses, str) else list(addresses)
        lines = checked(lines, connections)
        self._unopened: Callable[[], RouterPool] | None = functools.partial(
            RouterPool, lines, connections=connections, credentials=credentials, use_proxy=use_proxy
        )
        self._pool: RouterPool | None = None
        self._stubs: dict[Connection, Any] = {}
        self._metadata: Metadata = ()
        if api_key is not None:
            check_api_key(api_key)
            if credentials is None and not all(is_loopback(each) for each in lines):
                raise ValueError("api_key: is not sent in plain text; give root_certificates")
            self._metadata = (("authorization", f"Bearer {api_key}"),)
        self._timeout_s = timeout_s
        self._tracer_provider = tracer_provider
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        forks.note_open(self)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # none runs yet: the first call opens the channels
            return
        self._open(loop)

    def __reduce__(self) -> NoReturn:
        """Refuses to be copied or pickled: connections, and their loop, have one owner."""
        raise TypeError(f"{type(self).__name__}: cannot be copied or pickled; make another one")

    async def __aenter__(self) -> Self:
        """Returns the client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the channels."""
        await self.close()

    async def close(self) -> None:
        """Closes the channels; calls under way end with a ClientUnusableError."""
        self._closed = True
        if os.getpid() != self._pid:  # a forked child has the parent's channels: not its to close
            return
        self._unopened = None
        if self._pool is not None:
            await self._pool.close()
        self._stubs.clear()  # the last that holds channels: without any, gRPC lets a process fork
        forks.note_closed(self)

    async def generate(
        self, prompt: str, *, task: str = "", **options: Unpack[GenerateOptions]
    ) -> Answer:
        """Answers a prompt inside its deadline.

        Args:
            prompt: Text to complete, never empty.
            task: Task the mesh knows; empty means the routers' default one.
            **options: Deadline, sampling and limits; see ``GenerateOptions``.

        Raises:
            TiercelError: One of its subclasses, by what went wrong.
            TypeError: An argument is of a wrong type; the message names it.
            ValueError: An option that no message can carry.
        """
        spec = convert.generation_spec(prompt, task=task, **options)
        request = pb.GenerateRequest(spec=spec)
        with client_span(self._tracer_provider, "Generate", task) as (metadata, trace_id):
            response = await self._unary(
                lambda stub, timeout_s, stated: stub.Generate(
                    request, timeout=timeout_s, metadata=(*(metadata or ()), *stated)
                ),
                options.get("deadline_s"),
            )
        return convert.answer_of(response.completion, response.text, trace_id)

    async def generate_stream(
        self, prompt: str, *, task: str = "", **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[Chunk | Answer]:
        """Streams an answer: chunks in order, then one Answer (with empty text) that describes it.

        Takes and raises what ``generate`` does. Closing the iterator cancels the request.
        """
        spec = convert.generation_spec(prompt, task=task, **options)
        request = pb.GenerateStreamRequest(spec=spec)
        with client_span(self._tracer_provider, "GenerateStream", task) as (metadata, trace_id):
            limit_s = self.stream_limit_s(options.get("deadline_s"), options.get("slo_kind", ""))
            async for response in self._stream(request, metadata, limit_s):
                if response.WhichOneof("event") == "chunk":
                    yield Chunk(response.chunk.text, response.chunk.token_count)
                else:
                    yield convert.answer_of(response.completion, "", trace_id)

    async def route(
        self, *, task: str = "", prompt_token_count: int, **options: Unpack[RouteOptions]
    ) -> Ticket:
        """Asks for a decision only; the load counts until ``report_outcome`` or the lease's end.

        Args:
            task: Task the mesh knows; empty means the routers' default one.
            prompt_token_count: Length of the prompt in tokens, above 0.
            **options: Deadline and limits; see ``RouteOptions``.

        Raises:
            TiercelError: One of its subclasses, by what went wrong.
        """
        request = convert.route_request(task, prompt_token_count, **options)
        with client_span(self._tracer_provider, "Route", task) as (metadata, _):
            response = await self._unary(
                lambda stub, timeout_s, stated: stub.Route(
                    request, timeout=timeout_s, metadata=(*(metadata or ()), *stated)
                )
            )
        return convert.ticket_of(response)

    async def report_outcome(self, **outcome: Unpack[Outcome]) -> None:
        """Closes a ticket of ``route``, or gives late quality feedback for a request id.

        Args:
            **outcome: What became of the request; see ``Outcome``.

        Raises:
            ValueError: Neither or both of ticket and request id, or an unknown status.
            TiercelError: One of its subclasses, by what went wrong.
        """
        request = convert.outcome_request(**outcome)
        with client_span(self._tracer_provider, "ReportOutcome", "") as (metadata, _):
            await self._unary(
                lambda stub, timeout_s, stated: stub.ReportOutcome(
                    request, timeout=timeout_s, metadata=(*(metadata or ()), *stated)
                )
            )

    async def _unary(
        self,
        call: Callable[[Any, float, Metadata], Awaitable[ReplyT]],
        deadline_s: float | None = None,
    ) -> ReplyT:
        """Calls the routers in turn until one is reached; raises a TiercelError."""
        pool = self._usable()
        limit_s = self.limit_s(deadline_s)
        end_s = time.monotonic() + limit_s
        failure: grpc.aio.AioRpcError | None = None
        for connection in pool.attempts():
            left_s = end_s - time.monotonic()
            if failure is not None and left_s <= 0:
                break
            try:
                async with self._bounded(left_s):
                    stub = self._stub(connection)
                    reply: ReplyT | None = await answer_of(
                        call(stub, *self._timing(limit_s, left_s))
                    )
                if reply is None:  # how grpc.aio hands over what it cannot read
                    raise errors.unreadable()
                return reply
            except grpc.aio.AioRpcError as error:
                failure = self._judge(error, connection, pool)
        assert failure is not None  # the pool is never empty
        raise errors.from_rpc_error(failure) from None

    async def _stream(
        self, request: pb.GenerateStreamRequest, metadata: Any, limit_s: float
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """Streams from the first router that is reached; never starts again after a message."""
        pool = self._usable()
        end_s = time.monotonic() + limit_s
        failure: grpc.aio.AioRpcError | None = None
        for connection in pool.attempts():
            left_s = end_s - time.monotonic()
            if failure is not None and left_s <= 0:
                break
            stub = self._stub(connection)
            timeout_s, stated = self._timing(limit_s, left_s)
            call = stub.GenerateStream(
                request, timeout=timeout_s, metadata=(*(metadata or ()), *stated)
            )
            started = False
            try:
                responses = aiter(call)
                while True:
                    async with self._bounded(end_s - time.monotonic()):
                        response = await anext(responses, _END)
                    if response is _END:
                        return
                    if response is None:
                        raise errors.unreadable()
                    started = True
                    yield response
            except grpc.aio.AioRpcError as error:
                if started:
                    raise errors.from_rpc_error(error) from None
                failure = self._judge(error, connection, pool)
            finally:
                if os.getpid() == self._pid:  # else its connection is the parent's
                    call.cancel()
        assert failure is not None  # the pool is never empty
        raise errors.from_rpc_error(failure) from None

    def _stub(self, connection: Connection) -> Any:
        """Returns a connection's stub; ClientUnusableError if the client was closed meanwhile."""
        stub = self._stubs.get(connection)
        if stub is None:
            raise errors.unusable("CLIENT_CLOSED")
        return stub

    def _judge(
        self, error: grpc.aio.AioRpcError, connection: Connection, pool: RouterPool
    ) -> grpc.aio.AioRpcError:
        """Returns the failure if another router may be tried, raises its TiercelError otherwise."""
        may_go_on = errors.is_transport_failure(error)
        if may_go_on or errors.is_silence(error):
            pool.avoid(connection)
        if may_go_on:
            return error
        raise errors.from_rpc_error(error) from None

    def limit_s(self, deadline_s: float | None) -> float:
        """Returns when a call with this deadline is given up, seconds from its start."""
        check(deadline_s=deadline_s)
        return float(self._timeout_s if deadline_s is None else max(0.0, deadline_s) + GRACE_S)

    def stream_limit_s(self, deadline_s: float | None, slo_kind: str) -> float:
        """Returns when a stream is given up, seconds from its start.

        A deadline of tokens is not that of the end: the stream goes on after it.
        """
        limit_s = self.limit_s(deadline_s)
        return max(limit_s, self._timeout_s) if slo_kind in _OF_TOKENS else limit_s

    def _timing(self, limit_s: float, left_s: float) -> tuple[float, Metadata]:
        """Returns an attempt's time limit, and metadata: who calls, and the limit it began with."""
        timeout_s, stated = timing(limit_s, left_s)
        return timeout_s, (*self._metadata, stated)

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Makes the channels: they belong to the loop that runs now, and hang in any other."""
        if self._unopened is not None:
            self._pool, self._unopened, self._loop = self._unopened(), None, loop
            self._stubs = {
                connection: pb_grpc.RouterInferenceServiceStub(connection.channel)
                for connection in self._pool.connections
            }

    def _usable(self) -> RouterPool:
        """Returns the connections; raises ClientUnusableError rather than have a call hang."""
        loop = asyncio.get_running_loop()
        if os.getpid() != self._pid:
            raise errors.unusable("FORKED")
        if self._closed:
            raise errors.unusable("CLIENT_CLOSED")
        self._open(loop)
        if self._loop is not loop:
            raise errors.unusable("OTHER_LOOP")
        assert self._pool is not None
        return self._pool

    @contextlib.asynccontextmanager
    async def _bounded(self, left_s: float) -> AsyncIterator[None]:
        """Bounds a wait on gRPC, and tells a closed client from a cancelled task."""
        try:
            async with asyncio.timeout(max(0.0, left_s) + WAIT_SLACK_S):
                yield
        except TimeoutError:
            raise errors.unanswered() from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            raise errors.unusable("CLIENT_CLOSED") from None
