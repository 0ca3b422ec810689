"""The asyncio client against in-process routers: calls, turns, failover, cancellation, traces."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from tests.fakes.noise_server import noise_server
from tests.fakes.router import FakeRouter, abort, serve
from tests.waiting import until
from tiercel import (
    Answer,
    AsyncClient,
    Chunk,
    DeadlineMissedError,
    ServerError,
    TiercelError,
    UnavailableError,
)


async def test_generate_returns_text_and_what_is_known_about_it() -> None:
    """The answer carries the router's completion."""
    server, address = await serve(FakeRouter())
    async with AsyncClient(address) as client:
        answer = await client.generate("ab", task="sort", deadline_s=1.0, request_id="mine")
    await server.stop(0)
    assert (answer.text, answer.tier, answer.request_id) == ("AB", "large", "mine")
    assert answer.step_down == ""


async def test_stream_yields_chunks_then_the_answer() -> None:
    """Chunks come in order, one answer last."""
    server, address = await serve(FakeRouter())
    async with AsyncClient(address) as client:
        events = [event async for event in client.generate_stream("ab", task="sort")]
    await server.stop(0)
    assert events[:2] == [Chunk("A", 1), Chunk("B", 1)]
    assert isinstance(events[2], Answer)


async def test_route_and_report_close_a_ticket() -> None:
    """A ticket goes back with its outcome."""
    router = FakeRouter()
    server, address = await serve(router)
    async with AsyncClient(address) as client:
        ticket = await client.route(task="sort", prompt_token_count=8, deadline_s=0.5)
        await client.report_outcome(ticket=ticket.ticket, status="on_time", latency_s=0.2)
        with pytest.raises(ValueError, match="exactly one"):
            await client.report_outcome()
        with pytest.raises(ValueError, match="status"):
            await client.report_outcome(ticket=b"t", status="fine")  # type: ignore[arg-type]
    await server.stop(0)
    assert ticket.predicted_latency_s == 0.25
    assert router.reports[0].ticket == b"ticket"


async def test_calls_take_the_routers_in_turn() -> None:
    """Two routers share the calls."""
    routers = [FakeRouter(), FakeRouter()]
    started = [await serve(router) for router in routers]
    async with AsyncClient([address for _, address in started]) as client:
        for _ in range(6):
            await client.generate("ab", task="sort")
    for server, _ in started:
        await server.stop(0)
    assert [len(router.specs) for router in routers] == [3, 3]


async def test_a_router_that_is_gone_is_skipped_and_avoided() -> None:
    """Calls fail over, and the dead router goes to the end of the line."""
    gone, gone_address = await serve(FakeRouter())
    await gone.stop(0)
    server, address = await serve(FakeRouter())
    async with AsyncClient([gone_address, address]) as client:
        for _ in range(4):
            assert (await client.generate("ab", task="sort")).text == "AB"
        events = [event async for event in client.generate_stream("ab", task="sort")]
    await server.stop(0)
    assert len(events) == 3


async def test_a_silent_router_is_avoided() -> None:
    """The call that ran out of time is the last for a while; the next ones go to the others."""
    silent, well = FakeRouter(delay_s=60.0), FakeRouter()
    started = [await serve(router) for router in (silent, well)]
    async with AsyncClient([address for _, address in started]) as client:
        with pytest.raises(DeadlineMissedError):
            await client.generate("ab", task="sort", deadline_s=0.05)
        for _ in range(4):
            assert (await client.generate("ab", task="sort")).text == "AB"
    for server, _ in started:
        await server.stop(0)
    assert [len(router.specs) for router in (silent, well)] == [1, 4]


async def test_nothing_is_tried_again_when_a_router_has_answered() -> None:
    """UNAVAILABLE with a reason of the mesh is final; the other router is not asked."""

    class Unusable(FakeRouter):
        async def Generate(self, request: Any, context: Any) -> Any:
            await abort(context, grpc.StatusCode.UNAVAILABLE, "NO_USABLE_ENDPOINT", "none")

    other = FakeRouter()
    started = [await serve(Unusable()), await serve(other)]
    async with AsyncClient([address for _, address in started]) as client:
        with pytest.raises(UnavailableError, match="NO_USABLE_ENDPOINT"):
            await client.generate("ab", task="sort")
    for server, _ in started:
        await server.stop(0)
    assert other.specs == []


class _Stopping(FakeRouter):
    """Ends its first calls as gRPC's server does in the instant in which it stops."""

    def __init__(self, cancelled_calls: int = 1) -> None:
        super().__init__()
        self.left = cancelled_calls

    async def Generate(self, request: Any, context: Any) -> Any:
        self.left -= 1
        if self.left >= 0:
            await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
        return await super().Generate(request, context)


async def test_a_call_that_a_stopping_router_cancels_goes_to_another() -> None:
    """The caller did not cancel it, so it is not the caller's to notice."""
    started = [await serve(_Stopping()), await serve(FakeRouter())]
    async with AsyncClient([address for _, address in started]) as client:
        assert (await client.generate("ab", task="sort")).text == "AB"
    for server, _ in started:
        await server.stop(0)


async def test_the_only_address_is_tried_once_more_than_it_has_connections() -> None:
    """Several processes may stand behind it; failures by every connection are the mesh's."""
    server, address = await serve(_Stopping(cancelled_calls=2))
    async with AsyncClient(address, connections=2) as client:
        assert (await client.generate("ab", task="sort")).text == "AB"
    await server.stop(0)
    server, address = await serve(_Stopping(cancelled_calls=3))
    async with AsyncClient(address, connections=2) as client:
        with pytest.raises(UnavailableError, match=r"CANCELLED \(TRANSPORT\)"):
            await client.generate("ab", task="sort")
    await server.stop(0)


async def test_cancelling_a_call_cancels_it_at_the_router() -> None:
    """The router's work ends with the caller's interest."""
    router = FakeRouter(delay_s=30)
    server, address = await serve(router)
    async with AsyncClient(address) as client:
        task = asyncio.create_task(client.generate("ab", task="sort"))
        await until(lambda: router.specs, "the call reaches the router")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: router.cancelled_count == 1, "its work has ended")
    await server.stop(0)


async def test_the_trace_context_goes_along() -> None:
    """With a tracer configured, traceparent carries the answer's trace id."""
    router = FakeRouter()
    server, address = await serve(router)
    async with AsyncClient(address, tracer_provider=TracerProvider()) as client:
        answer = await client.generate("ab", task="sort")
    async with AsyncClient(address, tracer_provider=trace.NoOpTracerProvider()) as client:
        assert (await client.generate("ab", task="sort")).trace_id == ""
    await server.stop(0)
    assert router.metadata[0]["traceparent"].split("-")[1] == answer.trace_id
    assert "traceparent" not in router.metadata[1]
    assert all("tiercel-timeout-ms" in metadata for metadata in router.metadata)


@pytest.mark.parametrize("limit_s", [0.1234, 0.65, 1.003, 10.65, 30.0, 299.6, 300.0])
async def test_a_call_that_did_not_wait_does_not_look_as_if_it_had(limit_s: float) -> None:
    """What gRPC rounds away on the way is in what is stated, so a router sees waits and no more."""
    router = FakeRouter()
    server, address = await serve(router)
    async with AsyncClient(address, timeout_s=limit_s) as client:

        async def waited_s() -> list[float]:
            with contextlib.suppress(TiercelError):  # a busy machine takes longer than the limit
                await client.generate("ab", task="sort")
            stated = [float(each["tiercel-timeout-ms"]) / 1e3 for each in router.metadata]
            assert stated == pytest.approx([limit_s] * len(stated), rel=0.01)
            return [a - b for a, b in zip(stated, router.time_left_s, strict=True)]

        # It takes a moment here, which is a wait, once in a while a long one.
        async def is_short() -> bool:
            return min(await waited_s(), default=math.inf) < 0.1

        await until(is_short, "a call that did not wait")
        # What was added by rounding would be below 0.
        assert min(await waited_s()) > -0.002
    await server.stop(0)


async def test_a_deadline_of_tokens_does_not_end_their_stream() -> None:
    """Only one of the complete answer does, and that of an answer in one piece."""
    router = FakeRouter()
    server, address = await serve(router)
    async with AsyncClient(address, timeout_s=3000.0) as client:
        for kind in ("per_token", "first_token", "complete_answer", ""):
            stream = client.generate_stream("a", task="sort", deadline_s=60.0, slo_kind=kind)
            assert len([event async for event in stream]) == 2
        await client.generate("a", task="sort", deadline_s=60.0, slo_kind="per_token")
    await server.stop(0)
    assert [left_s > 100.0 for left_s in router.time_left_s] == [True, True, False, False, False]


async def test_options_no_message_can_carry_are_value_errors() -> None:
    """Bad options are refused before a call is made."""
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(ValueError, match="slo_kind"):
            await client.generate("ab", task="sort", slo_kind="soon")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="prompt: is no valid text"):
            await client.generate("\udc80", task="sort")
    with pytest.raises(ValueError, match="addresses"):
        AsyncClient([])
    with pytest.raises(ValueError, match="timeout_s"):
        AsyncClient("a:1", timeout_s=0)


async def test_an_answer_that_cannot_be_read_is_an_error() -> None:
    """Of a call and of a stream, which must not look complete."""
    async with noise_server() as address, AsyncClient(address) as client:
        with pytest.raises(ServerError, match="UNREADABLE_ANSWER"):
            await client.generate("ab", task="sort")
        with pytest.raises(ServerError, match="UNREADABLE_ANSWER"):
            [event async for event in client.generate_stream("ab", task="sort")]
