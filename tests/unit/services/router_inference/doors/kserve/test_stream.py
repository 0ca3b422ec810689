"""One call of ModelStreamInfer: many requests, each answered as if it were alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as kserve

from services.common.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from services.common.tiers.errors import TierUnavailableError
from services.router_inference.doors.kserve import servicer
from services.router_inference.doors.kserve.servicer import REASON_CLIENT_STREAMS
from services.router_inference.doors.servicer import READER_GRACE_S, REASON_NOT_READ
from tests.kserve_requests import infer_request, outputs_of, said
from tests.unit.services.router_inference.doors.test_servicer import CALL, Call
from tests.unit.services.router_inference.parts import Behaviour, Rig, make_rig
from tests.unit.services.router_inference.scenario import scenario

FINAL = "triton_final_response"
EMPTY_FINAL = {"triton_enable_empty_final_response": True}
SLOW = Behaviour(pieces=("a", "b", "c"), step_s=0.02)


class StreamCall(Call):
    """A call with metadata, whose messages are kept as they were when they were sent."""

    def __init__(self, *, is_read: bool = True, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(is_read=is_read)
        self.metadata = metadata

    async def write(self, message: Any) -> None:
        """Takes a copy: the door may use a message again."""
        copy = kserve.ModelStreamInferResponse()
        copy.CopyFrom(message)
        await super().write(copy)

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the metadata."""
        return self.metadata


async def each(*requests: Any) -> AsyncIterator[Any]:
    """Sends requests at once, then says that there are no more."""
    for request in requests:
        yield request


async def stream(rig: Rig, *requests: Any, **call: Any) -> list[Any]:
    """Sends requests on one call and returns what comes back."""
    made: Any = StreamCall(**call)
    await rig.core.kserve.ModelStreamInfer(each(*requests), made)
    return list(made.written)


def rig_of(behaviour: Behaviour = SLOW, **own: Any) -> Rig:
    """Returns a router with one task for all."""
    rig = make_rig(default_task="hard", **own)
    rig.tier().default = behaviour
    return rig


@scenario
async def test_pieces_come_as_the_tier_makes_them() -> None:
    """Every message has model, version and id; the last one says that it is, and how it went."""
    rig = rig_of()
    request = infer_request(
        stream=True, request_id="7", return_num_output_tokens=True, return_finish_reason=True
    )
    messages = await stream(rig, request)
    responses = [message.infer_response for message in messages]
    assert not any(message.error_message for message in messages)
    assert {(r.model_name, r.model_version, r.id) for r in responses} == {("tiercel", "1", "7")}
    assert [said(r)[FINAL] for r in responses] == [False, False, False, True]
    assert [outputs_of(r) for r in responses] == [
        *(
            {"text_output": text, "finish_reason": b"None", "num_output_tokens": 1}
            for text in (b"a", b"b", b"c")
        ),
        # Nothing was left to say but the end: a client that did not ask for an empty one gets one
        # with outputs.
        {"text_output": b"", "finish_reason": b"stop", "num_output_tokens": 0},
    ]
    assert list(said(responses[0])) == [FINAL]
    assert said(responses[-1])["tiercel_on_time"] is True
    rig.assert_settled()


@scenario
async def test_the_end_comes_without_outputs_where_that_was_asked_for() -> None:
    """With id, model and the flag, as `perf_analyzer` wants it."""
    rig = rig_of()
    *pieces, end = await stream(rig, infer_request(stream=True, parameters=EMPTY_FINAL))
    assert len(pieces) == 3
    response = end.infer_response
    assert (len(response.outputs), len(response.raw_output_contents)) == (0, 0)
    assert response.model_name == "tiercel"
    assert said(response)[FINAL] is True


@scenario
async def test_a_tier_that_ends_with_its_last_piece_costs_no_message_more() -> None:
    """The flag comes with text, as from Triton, in either mode."""
    for parameters in ({}, EMPTY_FINAL):
        rig = rig_of(Behaviour(pieces=("a", "b"), ends_with_last=True))
        request = infer_request(stream=True, parameters=parameters, return_finish_reason=True)
        first, last = [message.infer_response for message in await stream(rig, request)]
        assert (said(first)[FINAL], said(last)[FINAL]) == (False, True)
        assert outputs_of(last) == {"text_output": b"b", "finish_reason": b"stop"}
        assert said(last)["tiercel_on_time"] is True


@pytest.mark.parametrize(
    ("pieces", "ends_with_last"),
    [((), False), (("",), False), (("",), True), (("a",), False), (("a",), True)],
)
def test_short_answers_end_like_long_ones(pieces: tuple[str, ...], ends_with_last: bool) -> None:
    """No token, one without text, one: counted right, timed, and ended once, in every mode."""

    @scenario
    async def check() -> None:
        for parameters in ({}, EMPTY_FINAL):
            for is_stream in (False, True):
                rig = rig_of(Behaviour(pieces=pieces, ends_with_last=ends_with_last))
                request = infer_request(
                    stream=is_stream,
                    exclude_input_in_output=True,
                    return_num_output_tokens=True,
                    parameters=parameters,
                )
                responses = [each.infer_response for each in await stream(rig, request)]
                found = [outputs_of(each) for each in responses if each.outputs]
                texts = [each["text_output"] for each in found]
                assert b"".join(texts) == "".join(pieces).encode()  # type: ignore[arg-type]
                counts = [each["num_output_tokens"] for each in found]
                assert sum(counts) == len(pieces)  # type: ignore[arg-type]
                flags = [said(each)[FINAL] for each in responses]
                assert flags == [False] * (len(flags) - 1) + [True]
                told = said(responses[-1])
                assert ("tiercel_first_token_us" in told) is bool(pieces)
                rig.assert_settled()

    check()


@scenario
async def test_a_model_that_is_not_decoupled_answers_once() -> None:
    """As its configuration says; it can be asked on a stream, as in Triton."""
    rig = rig_of()
    good = infer_request("tiercel_unary", request_id="1")
    bad = infer_request("tiercel_unary", request_id="2", stream=True)
    messages = await stream(rig, good, bad)
    by_id = {message.infer_response.id: message for message in messages}
    assert len(messages) == 2
    assert said(by_id["1"].infer_response)[FINAL] is True
    assert by_id["2"].error_message == (
        "stream: is true, but model tiercel_unary answers in one piece"
    )


@pytest.mark.parametrize("parameters", [{}, EMPTY_FINAL])
def test_an_answer_without_streaming_is_one_message(parameters: dict[str, Any]) -> None:
    """It is the final one, whatever was asked for."""

    @scenario
    async def check() -> None:
        [message] = await stream(rig_of(), infer_request(parameters=parameters))
        assert outputs_of(message.infer_response) == {"text_output": b"helloabc"}
        assert said(message.infer_response)[FINAL] is True

    check()


@scenario
async def test_only_the_outputs_asked_for_come() -> None:
    """Text is left out where only the count is wanted."""
    request = infer_request(
        stream=True, outputs=("num_output_tokens",), return_num_output_tokens=True
    )
    *pieces, _ = await stream(rig_of(), request)
    assert [outputs_of(each.infer_response) for each in pieces] == [{"num_output_tokens": 1}] * 3


@scenario
async def test_answers_of_many_requests_interleave() -> None:
    """Nobody waits for the one before; ids tell them apart."""
    rig = rig_of()
    start_s = rig.clock.monotonic_s()
    requests = [infer_request(stream=True, request_id=str(n)) for n in range(20)]
    messages = await stream(rig, *requests)
    assert rig.clock.monotonic_s() - start_s == pytest.approx(0.06, abs=0.005)
    ids = [message.infer_response.id for message in messages]
    assert sorted(ids[:20], key=int) == [str(n) for n in range(20)]
    for number in range(20):
        own = [m.infer_response for m in messages if m.infer_response.id == str(number)]
        assert b"".join(outputs_of(r)["text_output"] for r in own) == b"abc"  # type: ignore[misc]
        assert [said(r)[FINAL] for r in own] == [False, False, False, True]
    rig.assert_settled()


@scenario
async def test_an_error_of_the_form_is_told_with_the_id_alone() -> None:
    """As Triton tells what it finds before its model; the call goes on, in either mode."""
    for metadata in ((), (("triton_grpc_error", "true"),)):
        rig = rig_of()
        bad = infer_request("nope", request_id="1")
        good = infer_request(request_id="2")
        messages = await stream(rig, bad, good, metadata=metadata)
        by_id = {message.infer_response.id: message for message in messages}
        assert "unknown model: 'nope'" in by_id["1"].error_message
        assert by_id["1"].infer_response == kserve.ModelInferResponse(id="1")
        assert said(by_id["2"].infer_response)[FINAL] is True
        assert rig.core.accounts.counts.invalid == 1
        rig.assert_settled()


@scenario
async def test_an_error_of_a_request_is_told_with_model_flag_and_reason() -> None:
    """As Triton tells what its model says; programs find status and reason in parameters."""
    rig = rig_of()
    late = infer_request(request_id="1", parameters={"timeout": 1})
    wrong = infer_request(request_id="2", sampling=b"{")
    messages = await stream(rig, late, wrong, infer_request(request_id="3"))
    by_id = {message.infer_response.id: message for message in messages}
    assert by_id["1"].error_message.startswith("refused: deadline not reachable")
    told = said(by_id["1"].infer_response)
    assert (told["tiercel_status"], told[FINAL]) == ("RESOURCE_EXHAUSTED", True)
    assert told["tiercel_reason"] == "DEADLINE_NOT_REACHABLE"
    assert told["tiercel_retry_after_ms"] > 0
    assert by_id["1"].infer_response.model_name == "tiercel"
    assert said(by_id["2"].infer_response)["tiercel_status"] == "INVALID_ARGUMENT"
    assert not by_id["3"].error_message


@scenario
async def test_by_status_the_first_such_error_ends_the_call() -> None:
    """With `triton_grpc_error`; what else was under way is cancelled."""
    rig = rig_of()
    other = infer_request(stream=True, request_id="1")
    with pytest.raises(InvalidArgumentError, match="sampling_parameters: is no JSON object"):
        await stream(
            rig, other, infer_request(sampling=b"{"), metadata=(("triton_grpc_error", "true"),)
        )
    rig.assert_settled()
    for value in ("True", "false"):
        messages = await stream(
            rig, infer_request(sampling=b"{"), metadata=(("triton_grpc_error", value),)
        )
        assert messages[0].error_message


@scenario
async def test_a_stream_that_breaks_off_is_no_success() -> None:
    """What came stays said; the last message is the error."""
    gone = TierUnavailableError("UNAVAILABLE", "connection refused")
    rig = rig_of(Behaviour(pieces=("a", "b"), error=gone, error_after=1))
    piece, end = await stream(rig, infer_request(stream=True, request_id="1"))
    assert outputs_of(piece.infer_response) == {"text_output": b"a"}
    assert said(piece.infer_response)[FINAL] is False
    assert "failed: connection refused" in end.error_message
    assert "tiercel_on_time" not in said(end.infer_response)
    asked = kserve.ModelStatisticsRequest(name="tiercel")
    stats = await rig.core.kserve.ModelStatistics(asked, CALL)
    assert stats.model_stats[0].inference_stats.fail.count == 1


@scenario
async def test_a_client_that_leaves_cancels_all_its_requests() -> None:
    """Nothing goes on for nobody."""
    rig = rig_of()
    requests = [infer_request(stream=True), infer_request()]
    task = asyncio.ensure_future(stream(rig, *requests))
    await asyncio.sleep(0.03)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [call["end"] for call in rig.tier().calls] == ["cancelled"] * 2
    rig.assert_settled()


@scenario
async def test_a_reader_that_does_not_read_ends_the_call() -> None:
    """Soon after the deadline of the first answer that waits; nothing is held for it."""
    rig = rig_of()
    start_s = rig.clock.monotonic_s()
    with pytest.raises(DeadlineExceededError) as caught:
        await stream(rig, *(infer_request(stream=True) for _ in range(3)), is_read=False)
    assert caught.value.reason == REASON_NOT_READ
    taken_s = rig.clock.monotonic_s() - start_s
    assert taken_s == pytest.approx(0.4 + READER_GRACE_S, abs=0.01)
    rig.assert_settled()


@scenario
async def test_a_flood_of_wrong_requests_nobody_reads_the_answers_of_is_bounded() -> None:
    """The door stops reading; the call ends, and nothing has piled up."""
    rig, taken = rig_of(), 0

    async def flood() -> AsyncIterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield infer_request("nope")

    call: Any = StreamCall(is_read=False)
    with pytest.raises(DeadlineExceededError):
        await rig.core.kserve.ModelStreamInfer(flood(), call)
    assert taken < 1_100


@scenario
async def test_a_stop_lets_requests_under_way_end_and_takes_no_more() -> None:
    """An open call would hold a stop up for as long as its client likes."""
    rig = rig_of()
    requests: asyncio.Queue[Any] = asyncio.Queue()

    async def sent() -> AsyncIterator[Any]:
        while True:
            yield await requests.get()

    call: Any = StreamCall()
    task = asyncio.ensure_future(rig.core.kserve.ModelStreamInfer(sent(), call))
    requests.put_nowait(infer_request(stream=True))
    await asyncio.sleep(0.03)
    rig.core.kserve.leave()
    requests.put_nowait(infer_request(stream=True))
    with pytest.raises(UnavailableError, match="going away"):
        await task
    assert said(call.written[-1].infer_response)["tiercel_on_time"] is True
    assert len(rig.tier().calls) == 1
    rig.assert_settled()


@scenario
async def test_a_client_that_leaves_as_the_router_stops_has_left() -> None:
    """Both interrupt the same reading; nobody is left to be told of the stop."""
    rig = rig_of()

    async def sent() -> AsyncIterator[Any]:
        yield await asyncio.get_running_loop().create_future()

    call: Any = StreamCall()
    task = asyncio.ensure_future(rig.core.kserve.ModelStreamInfer(sent(), call))
    await asyncio.sleep(0.0)
    rig.core.kserve.leave()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@scenario
async def test_calls_of_one_client_are_bounded_though_they_ask_nothing() -> None:
    """They would take the room of all others; one that has ended makes room."""
    rig = rig_of(max_streams_per_client=2)
    door, may_end = rig.core.kserve, asyncio.Event()

    async def silent() -> AsyncIterator[Any]:
        await may_end.wait()
        async for request in each():
            yield request

    call: Any = StreamCall()
    other: Any = StreamCall()
    other.peer = lambda: "ipv4:10.0.0.1:1"
    calls = [asyncio.ensure_future(door.ModelStreamInfer(silent(), call)) for _ in range(2)]
    await asyncio.sleep(0.0)
    with pytest.raises(ResourceExhaustedError, match="2 open streams of one client") as caught:
        await door.ModelStreamInfer(silent(), call)
    assert caught.value.reason == REASON_CLIENT_STREAMS
    calls.append(asyncio.ensure_future(door.ModelStreamInfer(silent(), other)))
    may_end.set()
    await asyncio.gather(*calls)
    await door.ModelStreamInfer(silent(), call)


@scenario
async def test_who_asks_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that was revoked is refused on calls that are open, too."""

    def refuse() -> None:
        raise UnauthenticatedError("the key is not known here", reason="BAD_CREDENTIALS")

    async def sent() -> AsyncIterator[Any]:
        yield infer_request(stream=True)
        await asyncio.sleep(2.0)
        yield infer_request(stream=True)

    monkeypatch.setattr(servicer, "check_again", refuse)
    rig, call = rig_of(), StreamCall()
    door: Any = rig.core.kserve
    await door.ModelStreamInfer(sent(), call)
    assert "not known here" in call.written[-1].error_message
    assert len(rig.tier().calls) == 1
