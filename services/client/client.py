"""Python client of the mesh: generate, stream, route and report, over one or several routers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from opentelemetry import propagate, trace

from services.client import convert, errors
from services.client.channels import Router, RouterPool
from services.client.convert import Answer, Chunk, Ticket
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb_grpc

DEFAULT_TIMEOUT_S = 30.0
"""Limit of a call without a deadline of its own."""
GRACE_S = 0.25
"""What a call may take beyond its deadline: the router's verdict shall arrive, not a timeout."""
SERVICE = "tiercel.router_inference.v1.RouterInferenceService"

ReplyT = TypeVar("ReplyT")


class TiercelClient:
    """Asynchronous client; use it as ``async with TiercelClient(["127.0.0.1:7410"]) as client``.

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
        credentials: grpc.ChannelCredentials | None = None,
        tracer_provider: trace.TracerProvider | None = None,
    ) -> None:
        """Opens channels lazily; nothing is sent yet.

        Args:
            addresses: Router addresses, host:port, or one address.
            timeout_s: Limit of calls that have no deadline, above 0 s.
            credentials: TLS credentials; plain text without.
            tracer_provider: Makes the client spans; None means OpenTelemetry's global one.

        Raises:
            ValueError: No address, or a timeout that is not above 0.
        """
        if not timeout_s > 0:
            raise ValueError(f"timeout_s: must be above 0, got {timeout_s}")
        lines = [addresses] if isinstance(addresses, str) else list(addresses)
        self._pool = RouterPool(lines, credentials=credentials)
        self._stubs = {
            router.address: pb_grpc.RouterInferenceServiceStub(router.channel)
            for router in self._pool.routers
        }
        self._timeout_s = timeout_s
        self._tracer = trace.get_tracer("tiercel.client", tracer_provider=tracer_provider)

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
        """Closes the channels; calls under way are cancelled."""
        await self._pool.close()

    async def generate(self, prompt: str, *, task: str, **options: Any) -> Answer:
        """Answers a prompt inside its deadline.

        Args:
            prompt: Text to complete, never empty.
            task: Task the mesh knows.
            **options: ``deadline_s``, ``max_output_tokens``, ``temperature``, ``seed``,
                ``slo_kind``, ``quality_floor``, ``tier``, ``request_id``; see
                ``convert.generation_spec``.

        Raises:
            TiercelError: One of its subclasses, by what went wrong.
            ValueError: An option that no message can carry.
        """
        spec = convert.generation_spec(prompt, task=task, **options)
        request = pb.GenerateRequest(spec=spec)
        with self._span("Generate", task) as (metadata, trace_id):
            response = await self._unary(
                lambda stub, timeout_s: stub.Generate(
                    request, timeout=timeout_s, metadata=metadata
                ),
                options.get("deadline_s"),
            )
        return convert.answer_of(response.completion, response.text, trace_id)

    async def generate_stream(
        self, prompt: str, *, task: str, **options: Any
    ) -> AsyncIterator[Chunk | Answer]:
        """Streams an answer: chunks in order, then one Answer (with empty text) that describes it.

        Takes and raises what ``generate`` does. Closing the iterator cancels the request.
        """
        spec = convert.generation_spec(prompt, task=task, **options)
        request = pb.GenerateStreamRequest(spec=spec)
        with self._span("GenerateStream", task) as (metadata, trace_id):
            async for response in self._stream(request, metadata, options.get("deadline_s")):
                if response.WhichOneof("event") == "chunk":
                    yield Chunk(response.chunk.text, response.chunk.token_count)
                else:
                    yield convert.answer_of(response.completion, "", trace_id)

    async def route(
        self,
        *,
        task: str,
        prompt_token_count: int,
        deadline_s: float | None = None,
        max_output_tokens: int | None = None,
        quality_floor: float = 0.0,
        tier: str = "",
        request_id: str = "",
    ) -> Ticket:
        """Asks for a decision only; the load counts until ``report_outcome`` or the lease's end.

        Raises:
            TiercelError: One of its subclasses, by what went wrong.
        """
        request = pb.RouteRequest(
            task=task,
            prompt_token_count=prompt_token_count,
            quality_floor=quality_floor,
            tier=tier,
            request_id=request_id,
        )
        if deadline_s is not None:
            request.deadline.CopyFrom(convert.duration(deadline_s))
        if max_output_tokens is not None:
            request.max_output_tokens = max_output_tokens
        with self._span("Route", task) as (metadata, _):
            response = await self._unary(
                lambda stub, timeout_s: stub.Route(request, timeout=timeout_s, metadata=metadata)
            )
        return convert.ticket_of(response)

    async def report_outcome(
        self,
        *,
        ticket: bytes | None = None,
        request_id: str | None = None,
        status: str = "",
        latency_s: float | None = None,
        output_token_count: int = 0,
        quality: float | None = None,
    ) -> None:
        """Closes a ticket of ``route``, or gives late quality feedback for a request id.

        Args:
            ticket: The ticket; give it or ``request_id``, not both.
            request_id: Id of an answered request.
            status: ``on_time``, ``late``, ``refused``, ``cancelled`` or ``failed``; needed with a
                ticket.
            latency_s: From the decision to the end; None means until now.
            output_token_count: Tokens delivered.
            quality: Quality of this very answer, 0 to 1; needed with a request id.

        Raises:
            ValueError: Neither or both of ticket and request id, or an unknown status.
            TiercelError: One of its subclasses, by what went wrong.
        """
        if (ticket is None) == (request_id is None):
            raise ValueError("ticket, request_id: give exactly one of them")
        request = pb.ReportOutcomeRequest(output_token_count=output_token_count)
        if ticket is not None:
            if status not in convert.OUTCOME_STATUSES:
                known = ", ".join(convert.OUTCOME_STATUSES)
                raise ValueError(f"status: must be one of {known}, got {status!r}")
            request.ticket = ticket
            request.status = convert.OUTCOME_STATUSES[status]
        elif request_id is not None:
            request.request_id = request_id
        if latency_s is not None:
            request.latency.CopyFrom(convert.duration(latency_s))
        if quality is not None:
            request.quality = quality
        with self._span("ReportOutcome", "") as (metadata, _):
            await self._unary(
                lambda stub, timeout_s: stub.ReportOutcome(
                    request, timeout=timeout_s, metadata=metadata
                )
            )

    async def _unary(
        self,
        call: Callable[[Any, float], Awaitable[ReplyT]],
        deadline_s: float | None = None,
    ) -> ReplyT:
        """Calls the routers in turn until one is reached; raises a TiercelError."""
        end_s = time.monotonic() + self._limit_s(deadline_s)
        failure: grpc.aio.AioRpcError | None = None
        for router in self._pool.attempts():
            left_s = end_s - time.monotonic()
            if failure is not None and left_s <= 0:
                break
            try:
                return await call(self._stubs[router.address], left_s)
            except grpc.aio.AioRpcError as error:
                failure = self._judge(error, router)
        assert failure is not None  # the pool is never empty
        raise errors.from_rpc_error(failure) from None

    async def _stream(
        self, request: pb.GenerateStreamRequest, metadata: Any, deadline_s: float | None
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """Streams from the first router that is reached; never starts again after a message."""
        end_s = time.monotonic() + self._limit_s(deadline_s)
        failure: grpc.aio.AioRpcError | None = None
        for router in self._pool.attempts():
            left_s = end_s - time.monotonic()
            if failure is not None and left_s <= 0:
                break
            stub: Any = self._stubs[router.address]
            call = stub.GenerateStream(request, timeout=left_s, metadata=metadata)
            started = False
            try:
                async for response in call:
                    started = True
                    yield response
                return
            except grpc.aio.AioRpcError as error:
                if started:
                    raise errors.from_rpc_error(error) from None
                failure = self._judge(error, router)
            finally:
                call.cancel()
        assert failure is not None  # the pool is never empty
        raise errors.from_rpc_error(failure) from None

    def _judge(self, error: grpc.aio.AioRpcError, router: Router) -> grpc.aio.AioRpcError:
        """Returns the failure if another router may be tried, raises its TiercelError otherwise."""
        if not errors.is_transport_failure(error):
            raise errors.from_rpc_error(error) from None
        self._pool.avoid(router)
        return error

    def _limit_s(self, deadline_s: float | None) -> float:
        return self._timeout_s if deadline_s is None else max(0.0, deadline_s) + GRACE_S

    def _span(self, method: str, task: str) -> _ClientSpan:
        return _ClientSpan(self._tracer, method, task)


class _ClientSpan:
    """A client span around one call; enters as (metadata to send, trace id in hex or empty)."""

    def __init__(self, tracer: trace.Tracer, method: str, task: str) -> None:
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": SERVICE,
            "rpc.method": method,
            "tiercel.task": task,
        }
        self._span = tracer.start_span(
            f"{SERVICE}/{method}", kind=trace.SpanKind.CLIENT, attributes=attributes
        )

    def __enter__(self) -> tuple[tuple[tuple[str, str], ...], str]:
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(self._span))
        context = self._span.get_span_context()
        trace_id = trace.format_trace_id(context.trace_id) if context.is_valid else ""
        return tuple(carrier.items()), trace_id

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, errors.TiercelError):
            self._span.set_attribute("rpc.grpc.status_code", int(error.code.value[0]))
            self._span.set_attribute("error.type", error.reason)
            self._span.set_status(trace.StatusCode.ERROR, str(error))
        elif error is not None and not isinstance(error, (GeneratorExit, asyncio.CancelledError)):
            self._span.record_exception(error)
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()
