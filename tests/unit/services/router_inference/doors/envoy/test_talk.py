"""What a gateway may tell of one exchange, in which order, and what is left of it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import DomainError, InvalidArgumentError
from tests.fakes.virtual_time import run_virtual
from tests.unit.services.router_inference.doors.envoy.gateway import (
    TRAILERS,
    Exchange,
    ended,
    gateway_rig,
    request,
    response,
)
from tests.unit.services.router_inference.parts import Rig
from tiercel.envoy.v3 import external_processor_pb2 as pb2

HEADERS = request()
PARTS = {
    "request_headers": HEADERS,
    "request_body": pb2.ProcessingRequest(request_body=pb2.HttpBody(body=b"a")),
    "request_trailers": pb2.ProcessingRequest(request_trailers=pb2.HttpTrailers()),
    "response_headers": response(),
    "response_body": pb2.ProcessingRequest(response_body=pb2.HttpBody(body=b"b")),
    "response_end": pb2.ProcessingRequest(response_body=pb2.HttpBody(end_of_stream=True)),
    "response_trailers": TRAILERS,
    "told_end": ended(first_byte_us="50000"),
    "wrong_end": ended(first_byte_us="soon"),
    "no_end": ended(7),
    "nothing": pb2.ProcessingRequest(),
    "observed": pb2.ProcessingRequest(request_body=pb2.HttpBody(), observability_mode=True),
    "no_status": pb2.ProcessingRequest(response_headers=pb2.HttpHeaders()),
}


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        (["response_headers"], "response_headers came before request_headers"),
        (["request_body"], "request_body came before request_headers"),
        (["request_headers", "request_headers"], "request_headers came twice"),
        (["request_headers", "response_trailers"], "without tiercel-answer-status"),
        (["request_headers", "told_end", "response_headers"], "came after response_trailers"),
        (["request_headers", "wrong_end"], "tiercel-answer-first-byte-us"),
        (["request_headers", "no_end"], "tiercel-answer-status"),
        (["request_headers", "request_trailers", "request_body"], "request_body came after"),
        (["request_headers", "response_headers", "response_headers"], "came twice"),
        (["nothing"], "says nothing"),
        (["request_headers", "observed"], "observability_mode"),
        (["request_headers", "no_status"], ":status"),
    ],
)
def test_messages_in_an_impossible_order_are_refused(told: list[str], problem: str) -> None:
    """By an error of the call that says what was wrong; nothing is left."""

    async def scene() -> None:
        rig = gateway_rig()
        exchange = Exchange(rig)
        for part in told[:-1]:
            await exchange.tell(PARTS[part])
        with pytest.raises(InvalidArgumentError, match=problem):
            await exchange.tell(PARTS[told[-1]])
        rig.assert_settled()

    run_virtual(scene())


@given(
    streams=st.lists(
        st.tuples(
            st.lists(st.sampled_from(sorted(PARTS)), max_size=7),
            st.sampled_from(["close", "reset", "wait"]),
            st.floats(0.0, 0.6),
        ),
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_streams_closed_at_any_moment_leave_no_load(
    streams: list[tuple[list[str], str, float]],
) -> None:
    """Whatever comes in whatever order: every request ends once, and the ledger is empty."""

    async def one(rig: Rig, parts: list[str], end: str, pause_s: float) -> None:
        exchange = Exchange(rig)
        try:
            for part in ["request_headers", *parts]:
                await exchange.tell(PARTS[part])
                await asyncio.sleep(pause_s / 4)
            if end != "wait":
                await (exchange.close() if end == "close" else exchange.reset())
            await exchange.stream
        except (DomainError, asyncio.CancelledError, AssertionError):
            await exchange.reset()

    async def scene() -> None:
        rig = gateway_rig(endpoint_count=2)
        await asyncio.gather(*(one(rig, *stream) for stream in streams))
        rig.assert_settled()
        assert rig.core.leases.open_count == 0
        outcomes = [each for each in await rig.records() if each.HasField("outcome")]
        assert len(outcomes) == len({each.outcome.sequence for each in outcomes})

    run_virtual(scene())
