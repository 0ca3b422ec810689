"""What a gateway may tell of one exchange, in which order, and what is left of it."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import DomainError, InvalidArgumentError
from services.router_inference.settings import RouterInferenceSettings
from tests.fakes.virtual_time import run_virtual
from tests.unit.services.router_inference.doors.envoy.gateway import (
    TRAILERS,
    Exchange,
    body,
    destinations,
    ended,
    gateway_rig,
    http_address,
    request,
    response,
    set_headers,
    with_body_to_come,
)
from tests.unit.services.router_inference.parts import Rig
from tests.unit.services.router_inference.scenario import scenario
from tiercel.envoy.v3 import external_processor_pb2 as pb2

HEADERS = request()
PARTS = {
    "request_headers": HEADERS,
    "body_echoed": with_body_to_come(pb2.FULL_DUPLEX_STREAMED),
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
        (["body_echoed", "told_end", "response_headers"], "came after response_trailers"),
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


@scenario
async def test_a_stream_ends_with_the_answer() -> None:
    """Its gateway has nothing left to tell; nothing is waited for, or read, after that."""
    rig = gateway_rig()
    exchange = Exchange(rig)
    await exchange.tell(request())
    await exchange.tell(ended())
    assert await exchange.stream is True
    assert rig.core.accounts.counts.on_time == 1
    rig.assert_settled()


@scenario
async def test_a_body_may_come_after_the_answer() -> None:
    """Where only what is sent back goes on, the rest of a request still goes through here."""
    exchange = Exchange(gateway_rig())
    await exchange.tell(PARTS["body_echoed"])
    await exchange.tell(ended())
    answer = await exchange.tell(PARTS["request_body"])
    assert answer.request_body.response.body_mutation.streamed_response.body == b"a"
    await exchange.close()
    assert await exchange.stream is False


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


MOST_BYTES = 65_536
MODES = (pb2.BUFFERED, pb2.FULL_DUPLEX_STREAMED)


def json_body(model: str = "tiercel", **fields: Any) -> bytes:
    """Returns what a client of OpenAI sends."""
    asked = {"messages": [{"role": "user", "content": "hello"}], "model": model} | fields
    return json.dumps(asked).encode()


def reading_rig(**options: Any) -> Rig:
    """Returns a router that reads bodies."""
    return gateway_rig(envoy_reads_bodies=True, **options)


async def tell_body(exchange: Exchange, mode: int, data: bytes) -> list[pb2.ProcessingResponse]:
    """Sends headers and body as a gateway does in that mode; returns what came for the body."""
    exchange.send(with_body_to_come(mode))
    if mode == pb2.BUFFERED:
        [first] = await exchange.answers()
        assert first.WhichOneof("response") == "request_headers"
        assert not set_headers(first)
        exchange.send(body(data))
    else:
        middle = len(data) // 2
        exchange.send(body(data[:middle], end=False))
        assert await exchange.answers() == []
        exchange.send(body(data[middle:]))
    return await exchange.answers()


@scenario
async def test_a_buffered_body_is_decided_for_and_written_anew() -> None:
    """The chosen server's name of the model, with the length that goes with it."""
    rig = reading_rig()
    exchange = Exchange(rig)
    [answer] = await tell_body(exchange, pb2.BUFFERED, json_body("small", max_tokens=4))
    assert destinations(answer, "request_body") == [http_address(0)]
    told = set_headers(answer)
    assert (told["x-tiercel-tier"], told["x-envoy-upstream-rq-timeout-ms"]) == ("small", "400")
    assert answer.request_body.response.clear_route_cache
    # The server's name is that of the tier: the body stays as it is.
    assert not answer.request_body.response.HasField("body_mutation")
    [job] = rig.core.leases._open.values()
    assert job.max_output_tokens == 4
    await exchange.tell(ended())
    await exchange.close()

    exchange = Exchange(rig)
    [answer] = await tell_body(exchange, pb2.BUFFERED, json_body(temperature=0.5))
    new = answer.request_body.response.body_mutation.body
    assert json.loads(new) == json.loads(json_body("large", temperature=0.5))
    assert set_headers(answer)["content-length"] == str(len(new))
    await exchange.tell(ended())
    await exchange.close()
    assert rig.core.accounts.counts.on_time == 2
    rig.assert_settled()


@scenario
async def test_one_name_for_every_server_is_written_where_it_is_not_there() -> None:
    """And a body that has it goes on as it is; both leave the tier to the router."""
    endpoint = {
        "name": "e0", "address": "127.0.0.1:9000", "http_address": http_address(0),
        "tiers": ("small", "large"), "models": {"small": "any", "large": "any"},
    }  # fmt: skip
    rig = reading_rig(mesh={"endpoints": [endpoint]})
    for model, is_written in (("tiercel", True), ("any", False), ("small", True)):
        exchange = Exchange(rig)
        [answer] = await tell_body(exchange, pb2.BUFFERED, json_body(model))
        tier = "small" if model == "small" else "large"
        assert set_headers(answer)["x-tiercel-tier"] == tier
        mutation = answer.request_body.response.body_mutation
        assert bool(mutation.body) is is_written
        if is_written:
            assert json.loads(mutation.body) == json.loads(json_body("any"))
        await exchange.reset()


@scenario
async def test_a_fleet_that_changes_while_a_body_comes_is_followed() -> None:
    """The request goes to who is there once it is decided for, and only where it may."""
    rig = reading_rig(endpoint_count=2)
    exchange = Exchange(rig)
    message = with_body_to_come()
    message.metadata_context.filter_metadata["envoy.lb.subset_hint"].update(
        {"x-gateway-destination-endpoint-subset": [http_address(1)]}
    )
    await exchange.tell(message)
    fleet = rig.core.view.fleet
    fleet._rebuild(fleet._specs)
    answer = await exchange.tell(body(json_body()))
    assert destinations(answer, "request_body") == [http_address(1)]
    await exchange.reset()


@scenario
async def test_what_comes_twice_is_the_gateways_mistake_while_a_body_is_awaited() -> None:
    """The call ends, not the client's request."""
    rig = reading_rig()
    exchange = Exchange(rig)
    await exchange.tell(with_body_to_come())
    with pytest.raises(InvalidArgumentError, match="request_headers came twice"):
        await exchange.tell(with_body_to_come())


@scenario
async def test_a_streamed_body_is_sent_back_once_it_is_whole() -> None:
    """The headers are answered first, then the body in pieces of which the last one ends it."""
    rig = reading_rig()
    exchange = Exchange(rig)
    prompt = "x" * 64_000
    first, *pieces = await tell_body(exchange, pb2.FULL_DUPLEX_STREAMED, json_body(messages=prompt))
    assert destinations(first) == [http_address(0)]
    parts = [each.request_body.response.body_mutation.streamed_response for each in pieces]
    assert [part.end_of_stream for part in parts] == [False, True]
    sent = json.loads(b"".join(part.body for part in parts))
    assert (sent["model"], sent["messages"]) == ("large", prompt)
    await exchange.tell(ended())
    await exchange.close()
    assert rig.core.accounts.counts.on_time == 1
    rig.assert_settled()


@scenario
async def test_trailers_end_a_body_too() -> None:
    """Then they go on last; a body that a gateway has buffered is whole before them."""
    rig = reading_rig()
    trailers = pb2.ProcessingRequest(request_trailers=pb2.HttpTrailers())
    exchange = Exchange(rig)
    exchange.send(with_body_to_come(pb2.FULL_DUPLEX_STREAMED))
    exchange.send(body(json_body(), end=False))
    assert await exchange.answers() == []
    exchange.send(trailers)
    first, piece, last = await exchange.answers()
    assert destinations(first) == [http_address(0)]
    assert not piece.request_body.response.body_mutation.streamed_response.end_of_stream
    assert last.HasField("request_trailers")
    await exchange.reset()

    exchange = Exchange(rig)
    await exchange.tell(with_body_to_come())
    answer = await exchange.tell(body(json_body(), end=False))
    assert destinations(answer, "request_body") == [http_address(0)]
    assert (await exchange.tell(trailers)).HasField("request_trailers")
    await exchange.reset()
    rig.assert_settled()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("data", "status", "named"),
    [
        (b"", 400, "body"),
        (b"{", 400, "body: is no valid JSON"),
        (b"[1]", 400, "body: is a list"),
        (b"\xff", 400, "body: is not valid UTF-8"),
        (json_body(model=""), 400, "model"),
        (json_body("gpt-4"), 404, "gpt-4"),
        (json_body("tiercel/soft"), 400, "x-tiercel-task: is 'hard'"),
        (json_body(max_tokens=-1), 400, "max_tokens"),
        (json_body(max_tokens=10**6), 400, "max_tokens: is 1000000"),
        (json_body(metadata={"tiercel_deadline_ms": 10**7}), 400, "metadata.tiercel_deadline_ms"),
        (json_body(metadata={"tiercel_tasks": "a"}), 400, "metadata.tiercel_tasks"),
        (b'{"model": "tiercel", "seed": 1e999}', 400, "body: holds a number"),
        (b"x" * (MOST_BYTES + 1), 413, f"body: has {MOST_BYTES + 1} bytes"),
    ],
)
def test_a_bad_body_is_the_doors_own_error(mode: int, data: bytes, status: int, named: str) -> None:
    """The field is named, nothing was offered, and the stream ends."""

    async def scene() -> None:
        rig = reading_rig()
        exchange = Exchange(rig)
        *_, answer = await tell_body(exchange, mode, data)
        assert answer.immediate_response.status.code == status
        assert named in json.loads(answer.immediate_response.body)["error"]
        await exchange.stream
        counts = rig.core.accounts.counts
        assert (counts.invalid, counts.offered) == (1, 0)
        rig.assert_settled()

    run_virtual(scene())


@pytest.mark.parametrize("mode", MODES)
def test_a_body_that_is_said_to_be_too_large_is_not_waited_for(mode: int) -> None:
    """Nothing of it crosses; headers without a body are told so too."""

    async def scene() -> None:
        rig = reading_rig()
        told = with_body_to_come(mode, content_length=str(MOST_BYTES + 1))
        without = with_body_to_come(mode)
        without.request_headers.end_of_stream = True
        for message, status in ((told, 413), (without, 400)):
            exchange = Exchange(rig)
            answer = await exchange.tell(message)
            assert answer.immediate_response.status.code == status
            assert "body" in json.loads(answer.immediate_response.body)["error"]
            await exchange.stream
        assert rig.core.accounts.counts.invalid == 2

    run_virtual(scene())


@pytest.mark.parametrize("mode", MODES)
def test_a_body_without_an_end_is_given_up(mode: int) -> None:
    """408 after ten seconds, and nothing is held; a client that leaves sooner leaves nothing."""

    async def scene() -> None:
        rig = reading_rig()
        begun_s = asyncio.get_running_loop().time()
        exchange, left = Exchange(rig), Exchange(rig)
        for each in (exchange, left):
            each.send(with_body_to_come(mode))
            if mode == pb2.FULL_DUPLEX_STREAMED:
                each.send(body(json_body()[:9], end=False))
        await left.close()
        await exchange.stream
        assert asyncio.get_running_loop().time() - begun_s == pytest.approx(10.0)
        *_, answer = await exchange.answers()
        assert answer.immediate_response.status.code == 408
        assert set_headers(answer)["x-tiercel-reason"] == "BODY_NOT_IN_TIME"
        assert (rig.core.accounts.counts.invalid, rig.core.accounts.counts.offered) == (1, 0)
        rig.assert_settled()

    run_virtual(scene())


@pytest.mark.parametrize("mode", MODES)
def test_a_stop_refuses_a_request_whose_body_does_not_come(mode: int) -> None:
    """503, so that its client asks again elsewhere; one that goes on coming is answered."""

    async def scene() -> None:
        rig = reading_rig()
        picker = rig.core.picker
        assert picker is not None
        exchange, late = Exchange(rig), Exchange(rig)
        for each in (exchange, late):
            each.send(with_body_to_come(mode))
            await each.answers()
        picker.leave()
        await asyncio.sleep(0.3)
        late.send(body(json_body()))
        await exchange.stream
        *_, refused = await exchange.answers()
        assert refused.immediate_response.status.code == 503
        assert await late.answers()
        await late.tell(ended())
        await late.stream
        assert rig.core.accounts.counts.on_time == 1
        rig.assert_settled()

    run_virtual(scene())


@pytest.mark.parametrize("mode", MODES)
def test_a_gateway_that_answers_by_itself_meanwhile_has_ended_the_request(mode: int) -> None:
    """Its client was too slow, for instance: nothing was decided, and no body comes after it."""

    async def scene() -> None:
        rig = reading_rig()
        exchange = Exchange(rig)
        exchange.send(with_body_to_come(mode))
        await exchange.answers()
        assert (await exchange.tell(ended(408))).HasField("response_trailers")
        if mode == pb2.BUFFERED:
            await exchange.stream  # has ended
        else:
            with pytest.raises(InvalidArgumentError, match="came after the body's end"):
                await exchange.tell(body(json_body()))
        rig.assert_settled()

    run_virtual(scene())


@scenario
async def test_a_second_body_is_refused() -> None:
    """A request has one."""
    rig = reading_rig()
    for mode in MODES:
        exchange = Exchange(rig)
        await tell_body(exchange, mode, json_body())
        with pytest.raises(InvalidArgumentError, match="request_body came after the body's end"):
            await exchange.tell(body(json_body()))
    rig.assert_settled()


@scenario
async def test_bodies_are_read_only_where_that_is_set_and_needed() -> None:
    """Not by default, not where the path has the model, not where they come piece by piece."""
    assert RouterInferenceSettings().envoy_reads_bodies is False
    generate = request()
    generate.protocol_config.request_body_mode = pb2.BUFFERED
    for rig, message in (
        (gateway_rig(), with_body_to_come()),
        (reading_rig(), generate),
        (reading_rig(), with_body_to_come(pb2.STREAMED)),
        (reading_rig(), with_body_to_come(pb2.NONE)),
    ):
        exchange = Exchange(rig)
        assert destinations(await exchange.tell(message)) == [http_address(0)]
        await exchange.reset()


@scenario
async def test_the_first_byte_counts_from_where_the_deadline_does() -> None:
    """A gateway counts from the request's first byte, its deadline from the body's last one."""
    rig = reading_rig()
    exchange = Exchange(rig)
    await exchange.tell(with_body_to_come())
    await asyncio.sleep(2.0)
    await exchange.tell(body(json_body()))
    await asyncio.sleep(0.2)
    await exchange.tell(ended(first_byte_us="2100000"))
    await exchange.close()
    _, outcome = await rig.records()
    assert outcome.outcome.first_token_latency.ToMilliseconds() == 100
    assert outcome.outcome.latency.ToMilliseconds() == 200


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_NAMES = st.sampled_from(
    ["model", "max_tokens", "max_completion_tokens", "stream", "metadata", "prompt_cache_key", "n"]
)
_METADATA = st.dictionaries(
    st.sampled_from(["tiercel_task", "tiercel_deadline_ms", "tiercel_priority", "tiercel_x", "y"]),
    _VALUES,
    max_size=3,
)


@given(
    mode=st.sampled_from(MODES),
    data=st.one_of(
        st.binary(max_size=64),
        st.builds(lambda value: json.dumps(value).encode(), _VALUES),
        st.builds(
            lambda fields, metadata: json_body(**(fields | metadata)),
            st.dictionaries(_NAMES.filter(lambda name: name != "model"), _VALUES, max_size=4),
            st.just({}) | st.builds(lambda found: {"metadata": found}, _METADATA),
        ),
    ),
    cuts=st.lists(st.integers(0, 64), max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_any_body_is_answered_or_refused(mode: int, data: bytes, cuts: list[int]) -> None:
    """By where it goes, or by an error of the client's: never a traceback, and nothing is left."""

    async def scene() -> None:
        rig = reading_rig()
        exchange = Exchange(rig)
        exchange.send(with_body_to_come(mode))
        inner = {cut for cut in cuts if 0 < cut < len(data) and mode == pb2.FULL_DUPLEX_STREAMED}
        for start, stop in itertools.pairwise([0, *sorted(inner), len(data)]):
            exchange.send(body(data[start:stop], end=stop == len(data)))
        answers = await exchange.answers()
        refused = [each.immediate_response.status.code for each in answers]
        assert answers
        assert set(refused) <= {0, 400, 404}
        if not any(refused):
            await exchange.tell(ended())
            await exchange.close()
        await exchange.stream
        rig.assert_settled()

    run_virtual(scene())
