"""Unmodified clients of Triton at the router's port: `tritonclient`, plain and asynchronous."""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc as plain
import tritonclient.grpc.aio as asynchronous
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2_grpc as kserve_grpc
from tritonclient.utils import InferenceServerException

from services.common.triton.client import TritonClient
from services.local.errors import InputError
from services.local.foreign import look_at
from services.router_inference.reconnect import END_OF_STREAM
from tests.fakes.router_process import RunningRouter, mesh_toml, running_router
from tests.fakes.triton import FakeTriton, Script
from tests.kserve_requests import infer_request, outputs_of, said
from tests.waiting import until

SERVICE = "inference.GRPCInferenceService"
WAIT_S = 60.0


@pytest_asyncio.fixture
async def triton() -> AsyncIterator[FakeTriton]:
    """An endpoint that answers in three pieces."""
    fake = await FakeTriton(default=Script(tokens=("a", "b", "c"), step_s=0.01)).start()
    yield fake
    await fake.stop()


@pytest_asyncio.fixture
async def router(triton: FakeTriton, tmp_path: Path) -> AsyncIterator[RunningRouter]:
    """A router before it, with a task for requests that name none."""
    text = mesh_toml([("e0", triton.address)], router='default_task = "piqa"', deadline_s=30.0)
    async with running_router(tmp_path, text) as running:
        yield running


def tensors(kind: Any, prompt: bytes = b"hello", **flags: bool) -> list[Any]:
    """Returns the inputs of a request as a client makes them."""
    text = kind.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([prompt], dtype=np.object_))
    found = [text]
    for name, value in {"exclude_input_in_output": True, **flags}.items():
        flag = kind.InferInput(name, [1], "BOOL")
        flag.set_data_from_numpy(np.array([value]))
        found.append(flag)
    return found


def text_of(result: Any) -> bytes:
    """Returns the text of a result; none of an empty end."""
    found = result.as_numpy("text_output")
    return b"" if found is None else bytes(found[0])


async def test_the_plain_client_asks_everything_it_can(router: RunningRouter) -> None:
    """Liveness to statistics, and an answer, from a client that knows nothing of us."""

    def use() -> None:
        with plain.InferenceServerClient(router.address) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("tiercel")
            assert not client.is_model_ready("nope")
            assert client.get_server_metadata().name == "tiercel"
            assert client.get_model_metadata("small", "1").inputs[0].name == "text_input"
            assert client.get_model_config("large").config.model_transaction_policy.decoupled
            names = [each.name for each in client.get_model_repository_index().models]
            assert names == ["large", "medium", "small", "tiercel", "tiercel_unary"]
            result = client.infer(
                "small",
                tensors(plain),
                request_id="7",
                parameters={"tiercel_task": "copa", "tiercel_deadline_ms": 20_000},
                client_timeout=WAIT_S,
            )
            assert text_of(result) == b"abc"
            response = result.get_response()
            assert (response.id, said(response)["tiercel_tier"]) == ("7", "small")
            [stats] = client.get_inference_statistics("small").model_stats
            assert stats.inference_count == 1
            with pytest.raises(InferenceServerException, match="not served") as caught:
                client.get_system_shared_memory_status()
            assert caught.value.status() == "StatusCode.UNIMPLEMENTED"

    await asyncio.to_thread(use)


@pytest.mark.parametrize("wants_empty", [False, True])
async def test_the_plain_client_streams(router: RunningRouter, wants_empty: bool) -> None:
    """Many requests on one stream; each ends with the flag, as clients count on."""

    def use() -> dict[str, list[Any]]:
        results: queue.Queue[tuple[Any, Any]] = queue.Queue()
        by_id: dict[str, list[Any]] = {str(number): [] for number in range(8)}
        with plain.InferenceServerClient(router.address) as client:
            client.start_stream(lambda result, error: results.put((result, error)))
            for name in by_id:
                client.async_stream_infer(
                    "tiercel",
                    tensors(plain, stream=True),
                    request_id=name,
                    enable_empty_final_response=wants_empty,
                )
            left = set(by_id)
            while left:
                result, error = results.get(timeout=WAIT_S)
                assert error is None
                response = result.get_response()
                by_id[response.id].append(result)
                if said(response)["triton_final_response"]:
                    left.remove(response.id)
            client.stop_stream()
        assert results.empty()
        return by_id

    for results in (await asyncio.to_thread(use)).values():
        # Whether the end comes with the last piece or after it is a matter of milliseconds.
        assert b"".join(map(text_of, results)) == b"abc"
        assert said(results[-1].get_response())["tiercel_on_time"] is True
        assert wants_empty or results[-1].as_numpy("text_output") is not None


async def test_errors_reach_the_plain_client_as_tritons_do(router: RunningRouter) -> None:
    """A status from `infer`, a text in a stream, and the stream goes on."""

    def use() -> None:
        with plain.InferenceServerClient(router.address) as client:
            with pytest.raises(InferenceServerException, match="unknown model: 'nope'") as caught:
                client.infer("nope", tensors(plain))
            assert caught.value.status() == "StatusCode.NOT_FOUND"
            results: queue.Queue[tuple[Any, Any]] = queue.Queue()
            client.start_stream(lambda result, error: results.put((result, error)))
            client.async_stream_infer("tiercel", tensors(plain, b""), request_id="1")
            _, error = results.get(timeout=WAIT_S)
            assert "text_input: is empty" in str(error)
            client.async_stream_infer("tiercel", tensors(plain), request_id="2")
            result, error = results.get(timeout=WAIT_S)
            assert (error, text_of(result)) == (None, b"abc")
            client.stop_stream()
            client.start_stream(
                lambda result, error: results.put((result, error)),
                headers={"triton_grpc_error": "true"},
            )
            client.async_stream_infer("tiercel", tensors(plain, b""))
            _, error = results.get(timeout=WAIT_S)
            assert error.status() == "StatusCode.INVALID_ARGUMENT"
            client.stop_stream()

    await asyncio.to_thread(use)


async def test_the_asynchronous_client(router: RunningRouter) -> None:
    """One answer, and a stream that ends with the flag though it never asks for an empty end."""
    async with asynchronous.InferenceServerClient(router.address) as client:
        assert await client.is_server_ready()
        result = await client.infer("tiercel_unary", tensors(plain), client_timeout=WAIT_S)
        assert text_of(result) == b"abc"

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for number in range(3):
                yield {
                    "model_name": "tiercel",
                    "inputs": tensors(plain, stream=True),
                    "request_id": str(number),
                }

        texts, ended = dict.fromkeys("012", b""), set()
        async with asyncio.timeout(WAIT_S):
            async for result, error in client.stream_infer(requests()):
                assert error is None
                response = result.get_response()
                texts[response.id] += text_of(result)
                if said(response)["triton_final_response"]:
                    ended.add(response.id)
    assert texts == dict.fromkeys("012", b"abc")
    assert ended == set(texts)


async def test_health_and_reflection_know_the_service(router: RunningRouter) -> None:
    """Tools find its methods and messages without a file of ours."""
    health = health_pb2_grpc.HealthStub(router.channel)
    reply = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=WAIT_S)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(router.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    names, file = [each async for each in stub.ServerReflectionInfo(iter(asked), timeout=WAIT_S)]
    assert SERVICE in [each.name for each in names.list_services_response.service]
    assert file.file_descriptor_response.file_descriptor_proto


async def asked_by_buf(router: RunningRouter, method: str, data: dict[str, Any]) -> Any:
    """Calls a method by `buf curl`, which finds it by reflection; returns the answer."""
    url = f"http://{router.address}/{method}"
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("buf")), "curl", "--protocol", "grpc",
        "--http2-prior-knowledge", "--data", json.dumps(data), url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.mark.parametrize("service", ["", "liveness", SERVICE])
async def test_buf_asks_for_health(router: RunningRouter, service: str) -> None:
    """By the standard service, of the whole router and of this door."""
    answer = await asked_by_buf(router, "grpc.health.v1.Health/Check", {"service": service})
    assert answer == {"status": "SERVING"}


async def test_buf_asks_without_any_file(router: RunningRouter) -> None:
    """`buf curl` finds the service by reflection and speaks JSON to it."""
    data = {"model_name": "small", "inputs": [
        {"name": "text_input", "datatype": "BYTES", "shape": [1],
         "contents": {"bytes_contents": [base64.b64encode(b"hello").decode()]}},
    ]}  # fmt: skip
    answer = await asked_by_buf(router, f"{SERVICE}/ModelInfer", data)
    assert base64.b64decode(answer["rawOutputContents"][0])[4:] == b"helloabc"
    assert answer["parameters"]["tiercel_tier"] == {"stringParam": "small"}


async def test_a_router_is_not_taken_for_a_triton(router: RunningRouter) -> None:
    """Whoever gives `tiercel init` its address, since it looks like one, is told."""
    with pytest.raises(InputError, match="a router of Tiercel, not a Triton"):
        await look_at([router.address], {})
    async with TritonClient(router.address) as client:
        assert (await client.model_config("small")).is_of_router


async def test_a_client_that_cancels_its_stream_stops_the_work(
    router: RunningRouter, triton: FakeTriton
) -> None:
    """Every request of the call, at the tier too."""
    triton.default = Script(tokens=("a",) * 1_000, step_s=0.05)
    stub: Any = kserve_grpc.GRPCInferenceServiceStub(router.channel)
    requests = [
        infer_request(stream=True, request_id=str(n), sampling=b'{"max_tokens": 1000}')
        for n in range(3)
    ]
    call = stub.ModelStreamInfer(iter(requests))
    await call.read()
    await until(lambda: len(triton.received) == 3, "all three are under way")
    call.cancel()
    await until(
        lambda: [each.end for each in triton.received] == ["cancelled"] * 3, "all are cancelled"
    )
    await until(lambda: router.core.accounts.in_flight == 0, "nothing is under way")


async def test_a_stop_ends_an_open_stream_after_its_requests(
    triton: FakeTriton, tmp_path: Path
) -> None:
    """The request under way is answered in full; the call then says that this server goes away."""
    triton.default = Script(tokens=("a", "b", "c"), step_s=0.1)
    text = mesh_toml([("e0", triton.address)], router='default_task = "piqa"', deadline_s=30.0)
    async with running_router(tmp_path, text) as router:
        stub: Any = kserve_grpc.GRPCInferenceServiceStub(router.channel)
        call = stub.ModelStreamInfer()
        await call.write(infer_request(stream=True, exclude_input_in_output=True))
        texts = []

        async def read() -> None:
            while (message := await call.read()) is not END_OF_STREAM:
                texts.append(outputs_of(message.infer_response)["text_output"])
                router.core.kserve.leave()

        with pytest.raises(grpc.aio.AioRpcError, match="going away") as caught:
            await asyncio.wait_for(read(), WAIT_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert texts[:3] == [b"a", b"b", b"c"]


async def test_a_message_that_is_too_large_ends_the_call_by_name(router: RunningRouter) -> None:
    """The stream's other answers cannot be told apart from it any more."""
    stub: Any = kserve_grpc.GRPCInferenceServiceStub(router.channel)
    call = stub.ModelStreamInfer(iter([infer_request(prompt=b"x" * 5_000_000)]), timeout=WAIT_S)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "message of 5000" in (caught.value.details() or "")
    requests = [infer_request(prompt=b"x" * 100_000, request_id="1")]
    answer = await stub.ModelStreamInfer(iter(requests), timeout=WAIT_S).read()
    assert "text_input: has 100000 bytes or more (limit: 1 to 65536" in answer.error_message
