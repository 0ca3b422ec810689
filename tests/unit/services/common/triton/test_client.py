"""The client against a scripted KServe v2 server on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2 as kserve
from tritonclient.grpc import service_pb2_grpc as kserve_grpc

from services.common.tiers.answer import TierChunk
from services.common.tiers.errors import (
    TierDeadlineError,
    TierOverloadedError,
    TierUnavailableError,
    TierUnknownError,
)
from services.common.triton.client import TritonClient
from tests.fakes.noise_server import noise_server
from tests.waiting import LIMIT_S

Behaviour = Callable[
    [kserve.ModelInferRequest, Any], AsyncIterator[kserve.ModelStreamInferResponse]
]


@dataclass
class ScriptedServer(kserve_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers as told; keeps what it was asked."""

    behaviour: Behaviour | None = None
    requests: list[kserve.ModelInferRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    time_left_s: list[float] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    other_model_count: int = 0

    async def ModelStreamInfer(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[kserve.ModelStreamInferResponse]:
        """Plays the behaviour for the one request of the stream."""
        async for request in request_iterator:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self.time_left_s.append(context.time_remaining())
            assert self.behaviour is not None
            try:
                async for response in self.behaviour(request, context):
                    yield response
            except (asyncio.CancelledError, GeneratorExit):
                # The latter where it is cancelled while a response is being sent.
                self.cancelled.set()
                raise

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Is live."""
        return kserve.ServerLiveResponse(live=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Only `large` is ready."""
        return kserve.ModelReadyResponse(ready=request.name == "large")

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        """Knows `large`."""
        if request.name != "large":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model '{request.name}'")
        response = kserve.ModelConfigResponse()
        response.config.name = "large"
        response.config.backend = "python"
        response.config.parameters["tiercel_kind"].string_value = "paced"
        response.config.parameters["tiercel_tier"].string_value = "large"
        return response

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        """Has counters of one model."""
        response = kserve.ModelStatisticsResponse()
        for index in range(self.other_model_count):
            response.model_stats.add(name=f"m{index}")
        entry = response.model_stats.add(name="large", inference_count=7, execution_count=5)
        entry.inference_stats.success.count = 6
        entry.inference_stats.fail.count = 1
        entry.inference_stats.queue.ns = 2_500_000_000
        entry.inference_stats.compute_infer.ns = 500_000_000
        return response


@pytest_asyncio.fixture
async def server() -> AsyncIterator[tuple[ScriptedServer, TritonClient]]:
    """A scripted server and a client of it."""
    scripted = ScriptedServer()
    grpc_server = grpc.aio.server()
    kserve_grpc.add_GRPCInferenceServiceServicer_to_server(scripted, grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    async with TritonClient(f"127.0.0.1:{port}") as client:
        yield scripted, client
    await grpc_server.stop(None)


Server = tuple[ScriptedServer, TritonClient]


def _response(text: str, *, final: bool, **outputs: Any) -> kserve.ModelStreamInferResponse:
    """Builds a response as Triton's vLLM backend does."""
    message = kserve.ModelStreamInferResponse()
    response = message.infer_response
    data = text.encode()
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    response.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
    for name, value in outputs.items():
        response.outputs.add(name=name, shape=[1])
        raw = (
            value.to_bytes(4, "little")
            if isinstance(value, int)
            else len(value).to_bytes(4, "little") + value.encode()
        )
        response.raw_output_contents.append(raw)
    response.parameters["triton_final_response"].bool_param = final
    return message


def _says(*messages: kserve.ModelStreamInferResponse) -> Behaviour:
    async def behaviour(
        request: kserve.ModelInferRequest, context: Any
    ) -> AsyncIterator[kserve.ModelStreamInferResponse]:
        for message in messages:
            yield message

    return behaviour


def _aborts(code: grpc.StatusCode, detail: str) -> Behaviour:
    async def behaviour(
        request: kserve.ModelInferRequest, context: Any
    ) -> AsyncIterator[kserve.ModelStreamInferResponse]:
        await context.abort(code, detail)
        yield kserve.ModelStreamInferResponse()

    return behaviour


async def _hangs(
    request: kserve.ModelInferRequest, context: Any
) -> AsyncIterator[kserve.ModelStreamInferResponse]:
    yield _response("a", final=False)
    await asyncio.Event().wait()


async def _collect(client: TritonClient, **options: Any) -> list[TierChunk]:
    settings: dict[str, Any] = {"timeout_s": 5.0, **options}
    return [chunk async for chunk in client.generate("large", "a prompt", 8, **settings)]


async def test_chunks_carry_text_tokens_and_reason(server: Server) -> None:
    """Text, token count and finish reason come out as the tier sent them."""
    scripted, client = server
    scripted.behaviour = _says(
        _response("hel", final=False, finish_reason="null", num_output_tokens=2),
        _response("lo", final=True, finish_reason="stop", num_output_tokens=1),
    )
    assert await _collect(client) == [
        TierChunk("hel", 2, False, ""),
        TierChunk("lo", 1, True, "stop"),
    ]


async def test_empty_final_response_ends_the_answer(server: Server) -> None:
    """A tier that sends its final flag without any output is understood."""
    scripted, client = server
    final = kserve.ModelStreamInferResponse()
    final.infer_response.parameters["triton_final_response"].bool_param = True
    scripted.behaviour = _says(_response("hi", final=False), final)
    assert await _collect(client) == [TierChunk("hi", 1, False, ""), TierChunk("", 0, True, "")]


async def test_request_has_the_interface_of_a_tier(server: Server) -> None:
    """Inputs, parameters, deadline and metadata are those that a tier expects."""
    scripted, client = server
    scripted.behaviour = _says(_response("x", final=True))
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    await _collect(
        client, temperature=0.5, seed=7, timeout_s=3.0, metadata=[("traceparent", traceparent)]
    )
    [request] = scripted.requests
    contents = dict(
        zip((tensor.name for tensor in request.inputs), request.raw_input_contents, strict=True)
    )
    assert contents["text_input"] == b"\x08\0\0\0a prompt"
    assert contents["stream"] == b"\x01"
    assert contents["exclude_input_in_output"] == b"\x01"
    sampling = json.loads(contents["sampling_parameters"][4:])
    assert sampling == {"max_tokens": 8, "temperature": 0.5, "seed": 7}
    assert request.parameters["triton_enable_empty_final_response"].bool_param
    assert request.parameters["timeout"].int64_param == 3_000_000
    assert 2.0 < scripted.time_left_s[0] < 3.5
    assert scripted.metadata[0]["traceparent"] == traceparent


async def test_status_becomes_a_typed_error(server: Server) -> None:
    """A call that fails raises the error of its status."""
    scripted, client = server
    scripted.behaviour = _aborts(grpc.StatusCode.NOT_FOUND, "unknown model: 'x'")
    with pytest.raises(TierUnavailableError, match="MODEL_NOT_FOUND: unknown model: 'x'"):
        await _collect(client)


async def test_error_text_without_status_is_typed(server: Server) -> None:
    """A Triton that sends errors as text inside the stream is understood too."""
    scripted, client = server
    text = "Exceeds maximum queue size"
    scripted.behaviour = _says(kserve.ModelStreamInferResponse(error_message=text))
    with pytest.raises(TierOverloadedError, match="QUEUE_FULL"):
        await _collect(client)


async def test_triton_gets_an_id_of_our_own(server: Server) -> None:
    """No two requests share one, and the text that Triton puts after it is understood."""
    scripted, client = server

    async def behaviour(
        request: kserve.ModelInferRequest, context: Any
    ) -> AsyncIterator[kserve.ModelStreamInferResponse]:
        text = f"[request id: {request.id}] Exceeds maximum queue size"
        yield kserve.ModelStreamInferResponse(error_message=text)

    scripted.behaviour = behaviour
    for _ in range(2):
        with pytest.raises(TierOverloadedError, match="QUEUE_FULL"):
            await _collect(client)
    assert len({request.id for request in scripted.requests}) == 2


def _with_raw_count(raw: bytes) -> kserve.ModelStreamInferResponse:
    message = _response("a", final=True, num_output_tokens=1)
    message.infer_response.raw_output_contents[1] = raw
    return message


def _with_raw_text(raw: bytes) -> kserve.ModelStreamInferResponse:
    message = _response("a", final=True)
    message.infer_response.raw_output_contents[0] = raw
    return message


@pytest.mark.parametrize(
    "messages",
    [
        [_with_raw_count(b"\xff" * 100_000)],
        [_with_raw_count(b"\xff" * 8)],
        [_with_raw_count((9).to_bytes(4, "little"))],
        [_response("a", final=False, num_output_tokens=5)] * 2,
        [_with_raw_text(b"\xff\xff\xff\xffabc")],
        [_with_raw_text(b"abc")],
        [_response("x" * 10_000, final=False)],
        [_response("x" * 2_000, final=False, num_output_tokens=0)] * 9,
        [_response("", final=False, num_output_tokens=0)] * 100,
        [_response("x" * 5_000_000, final=True)],
    ],
    ids=[
        "count of 100 kB",
        "largest count",
        "one token too many",
        "too many tokens in all",
        "text shorter than stated",
        "text without a length",
        "text too long",
        "text too long in all",
        "endless empty pieces",
        "message too large",
    ],
)
async def test_an_answer_no_tier_may_give_is_the_endpoints_fault(
    server: Server, messages: list[kserve.ModelStreamInferResponse]
) -> None:
    """Of 8 tokens asked for; it ends with a reason, and the stream is closed."""
    scripted, client = server
    scripted.behaviour = _says(*messages)
    with pytest.raises(TierUnavailableError, match="BAD_ANSWER"):
        await _collect(client)


async def test_a_finish_reason_is_one_of_two_words(server: Server) -> None:
    """Whatever else a tier says is no reason that callers are told."""
    scripted, client = server
    scripted.behaviour = _says(_response("a", final=True, finish_reason="x" * 1_000))
    assert await _collect(client) == [TierChunk("a", 1, True, "")]


async def test_stream_without_final_response_is_an_error(server: Server) -> None:
    """An answer that just ends is not taken for a complete one."""
    scripted, client = server
    scripted.behaviour = _says(_response("hal", final=False))
    with pytest.raises(TierUnknownError, match="STREAM_ENDED"):
        await _collect(client)


async def test_deadline_ends_a_hanging_answer(server: Server) -> None:
    """A tier that hangs costs its deadline and no more."""
    scripted, client = server
    scripted.behaviour = _hangs
    with pytest.raises(TierDeadlineError):
        await _collect(client, timeout_s=0.2)


async def test_no_time_left_sends_nothing(server: Server) -> None:
    """A request whose deadline has passed does not reach the tier."""
    scripted, client = server
    with pytest.raises(TierDeadlineError):
        await _collect(client, timeout_s=0.0)
    assert scripted.requests == []


async def test_closing_the_answer_cancels_the_call(server: Server) -> None:
    """Leaving the loop early tells the server."""
    scripted, client = server
    scripted.behaviour = _hangs
    async with contextlib.aclosing(client.generate("large", "p", 8, timeout_s=30.0)) as chunks:
        async for _ in chunks:
            break
    await asyncio.wait_for(scripted.cancelled.wait(), LIMIT_S)


async def test_cancelled_task_cancels_the_call(server: Server) -> None:
    """Cancelling the task that waits for the answer tells the server."""
    scripted, client = server
    scripted.behaviour = _hangs
    task = asyncio.create_task(_collect(client, timeout_s=30.0))
    while not scripted.requests:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(scripted.cancelled.wait(), LIMIT_S)


async def test_nobody_listens() -> None:
    """An endpoint that is gone is unavailable, not live, and nothing hangs."""
    async with TritonClient("127.0.0.1:1", control_timeout_s=0.5) as client:
        assert not await client.is_live()
        assert not await client.is_ready("large")
        with pytest.raises(TierUnavailableError):
            await _collect(client, timeout_s=LIMIT_S)
        with pytest.raises(TierUnavailableError):
            await client.statistics()


async def test_control_calls_are_typed(server: Server) -> None:
    """Liveness, readiness, configuration and counters come as plain values."""
    _, client = server
    assert await client.is_live()
    assert await client.is_ready("large")
    assert not await client.is_ready("small")
    config = await client.model_config("large")
    assert (config.kind, config.tier, config.backend) == ("paced", "large", "python")
    with pytest.raises(TierUnavailableError, match="MODEL_NOT_FOUND"):
        await client.model_config("small")
    counters = (await client.statistics())["large"]
    assert (counters.inference_count, counters.execution_count) == (7, 5)
    assert (counters.success_count, counters.fail_count) == (6, 1)
    assert (counters.queue_s, counters.compute_s) == (2.5, 0.5)


async def test_a_tier_counts_a_prompt_in_its_own_tokens(server: Server) -> None:
    """It is asked for one token and for the count; a tier that sends none is at fault."""
    scripted, client = server
    assert not (await client.model_config("large")).counts_prompts
    outputs: dict[str, int] = {"num_input_tokens": 900}

    async def behaviour(request: Any, context: Any) -> Any:
        yield _response("a", final=True, **outputs)

    scripted.behaviour = behaviour
    assert await client.prompt_token_count("large", "words", timeout_s=LIMIT_S) == 900
    asked = scripted.requests[0]
    assert asked.inputs[-1].name == "return_num_input_tokens"
    assert len(asked.raw_input_contents) == len(asked.inputs)
    assert json.loads(asked.raw_input_contents[2][4:])["max_tokens"] == 1
    outputs.clear()
    with pytest.raises(TierUnavailableError, match="num_input_tokens"):
        await client.prompt_token_count("large", "words", timeout_s=LIMIT_S)


async def test_statistics_of_thousands_of_models_are_refused(server: Server) -> None:
    """Taking them apart would hold up everything else, several times a second."""
    scripted, client = server
    scripted.other_model_count = 2_000
    with pytest.raises(TierUnknownError, match="TOO_MANY_MODELS"):
        await client.statistics()


async def test_bytes_that_are_no_message_are_the_endpoints_fault() -> None:
    """Of whatever is asked; gRPC hands them over as nothing at all."""
    async with noise_server() as address, TritonClient(address) as client:
        with pytest.raises(TierUnavailableError, match="BAD_ANSWER"):
            await _collect(client)
        for ask in (client.statistics, client.loaded_models, partial(client.model_config, "m")):
            with pytest.raises(TierUnavailableError, match="BAD_ANSWER"):
                await ask()
        assert not await client.is_live()
        assert not await client.is_ready()
        assert not await client.is_ready("m")
