"""The router's real process ends: in order on one signal, at once on two, losing nothing."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2_grpc as kserve_grpc

from services.router_inference.reconnect import END_OF_STREAM
from tests.fakes.router_process import mesh_toml, router_process
from tests.fakes.triton import FakeTriton, Script
from tests.kserve_requests import infer_request, said
from tests.waiting import LIMIT_S, until
from tiercel import AsyncClient
from tiercel.envoy.v3 import external_processor_pb2 as envoy_pb2
from tiercel.envoy.v3 import external_processor_pb2_grpc as envoy_grpc
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

ANSWER = "/v2/models/tiercel/generate"
SERVICE = "tiercel.router_inference.v1.RouterInferenceService"


def request(deadline_ms: int = 20_000) -> pb2.GenerateRequest:
    """A good request."""
    made = pb2.GenerateRequest(spec=pb2.GenerationSpec(prompt="hello", task="piqa"))
    made.spec.deadline.FromMilliseconds(deadline_ms)
    return made


def exchange_of(path: str) -> envoy_pb2.ProcessingRequest:
    """The first message of a gateway's exchange."""
    message = envoy_pb2.ProcessingRequest()
    for key, text in ((":path", path), (":method", "POST"), ("content-length", "40")):
        message.request_headers.headers.headers.add(key=key, raw_value=text.encode())
    return message


END = envoy_pb2.ProcessingRequest(response_trailers=envoy_pb2.HttpTrailers())
END.response_trailers.trailers.headers.add(key="tiercel-answer-status", raw_value=b"200")


async def test_what_is_under_way_ends_and_what_comes_later_is_refused(tmp_path: Path) -> None:
    """On SIGTERM running answers are finished, streams included, and the exit code is 0."""
    triton = await FakeTriton(default=Script(tokens=("a",) * 4, step_s=0.2)).start()
    toml = mesh_toml([("e0", triton.address)]).replace("lame_duck_s = 0.0", "lame_duck_s = 0.1")
    toml = toml.replace("grace_s = 2.0", "grace_s = 20.0")
    with router_process(tmp_path, toml) as router:
        async with grpc.aio.insecure_channel(router.address) as channel:
            stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)
            unary = [
                asyncio.ensure_future(stub.Generate(request(), timeout=LIMIT_S)) for _ in range(5)
            ]
            stream = stub.GenerateStream(
                pb2.GenerateStreamRequest(spec=request().spec), timeout=LIMIT_S
            )
            pieces = aiter(stream)
            await anext(pieces)
            await until(lambda: len(triton.received) == 6, "every request is under way")
            router.process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*unary)
            assert all(answer.text == "aaaa" for answer in answers)
            rest = [message async for message in pieces]
            assert rest[-1].completion.output_token_count == 4
        async with grpc.aio.insecure_channel(router.address) as fresh:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await pb2_grpc.RouterInferenceServiceStub(fresh).Generate(
                    request(), timeout=LIMIT_S
                )
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await asyncio.to_thread(router.process.wait, LIMIT_S) == 0
        assert "Traceback" not in router.log_path.read_text()
    await triton.stop()


async def test_a_stop_waits_for_no_client_of_triton_that_keeps_its_call_open(
    tmp_path: Path,
) -> None:
    """The request under way is answered, an idle call is told that the server goes away."""
    triton = await FakeTriton(default=Script(tokens=("a",) * 4, step_s=0.2)).start()
    toml = mesh_toml([("e0", triton.address)], router='default_task = "piqa"', deadline_s=20.0)
    toml = toml.replace("grace_s = 2.0", "grace_s = 60.0")
    with router_process(tmp_path, toml) as router:
        async with grpc.aio.insecure_channel(router.address) as channel:
            stub: Any = kserve_grpc.GRPCInferenceServiceStub(channel)
            idle, busy = stub.ModelStreamInfer(), stub.ModelStreamInfer()
            for call, count in ((idle, 4), (busy, 1)):
                await call.write(infer_request(stream=True))
                for _ in range(count):
                    message = await call.read()
            assert said(message.infer_response)["triton_final_response"] is False
            router.process.send_signal(signal.SIGTERM)

            async def rest(call: Any) -> tuple[str, Any]:
                last = None
                try:
                    while (answer := await call.read()) is not END_OF_STREAM:
                        last = answer
                except grpc.aio.AioRpcError as error:
                    return str(error.details()), last
                return "all was said", last

            (first, _), (second, last) = await asyncio.gather(rest(idle), rest(busy))
            assert first == second == "this server is going away; call another one"
            assert said(last.infer_response)["tiercel_on_time"] is True
        assert await asyncio.to_thread(router.process.wait, LIMIT_S) == 0
        assert "Traceback" not in router.log_path.read_text()
    await triton.stop()


async def test_a_stop_waits_for_no_gateway_that_tells_nothing(tmp_path: Path) -> None:
    """Streams without a request end at once; that of a request under way once its end is told."""
    router = 'default_task = "piqa"\nenvoy_listen = "127.0.0.1:0"\nmax_deadline_s = 600.0'
    toml = mesh_toml([("e0", "127.0.0.1:1")], router=router, deadline_s=300.0)
    toml = toml.replace("grace_s = 2.0", "grace_s = 300.0")
    toml = toml.replace("[router_inference]", 'http_address = "127.0.0.1:2"\n[router_inference]')
    with router_process(tmp_path, toml) as running:
        place = json.loads((tmp_path / "ready.json").read_text())["addresses"]["envoy"]
        async with grpc.aio.insecure_channel(place) as channel:
            stub: Any = envoy_grpc.ExternalProcessorStub(channel)
            silent, other, told, carried = (stub.Process() for _ in range(4))
            await silent.wait_for_connection()
            for call, path in ((other, "/v2/repository/index"), (told, ANSWER), (carried, ANSWER)):
                await call.write(exchange_of(path))
                assert (await call.read()).HasField("request_headers")
            await told.write(END)
            assert (await told.read()).HasField("response_trailers")
            running.process.send_signal(signal.SIGTERM)
            for call, code in (
                (silent, grpc.StatusCode.UNAVAILABLE),
                (other, grpc.StatusCode.OK),
                (told, grpc.StatusCode.OK),
            ):
                assert await call.code() is code
            assert not carried.done()
            await carried.write(END)
            assert (await carried.read()).HasField("response_trailers")
            assert await carried.code() is grpc.StatusCode.OK
        assert await asyncio.to_thread(running.process.wait, LIMIT_S) == 0
        assert "Traceback" not in running.log_path.read_text()


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """Somebody in a hurry does not wait for the grace time."""
    triton = await FakeTriton(default=Script(hang=True)).start()
    toml = mesh_toml([("e0", triton.address)]).replace("grace_s = 2.0", "grace_s = 60.0")
    with router_process(tmp_path, toml) as router:
        async with grpc.aio.insecure_channel(router.address) as channel:
            stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)
            call = stub.Generate(request(deadline_ms=60_000), timeout=60.0)
            await until(lambda: triton.received, "the request reaches Triton")
            router.process.send_signal(signal.SIGTERM)
            await until(lambda: "draining" in router.log_path.read_text(), "the drain begins")
            router.process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(router.process.wait, LIMIT_S)
            assert code == 128 + signal.SIGTERM
            call.cancel()
    await triton.stop()


async def test_a_drain_beside_a_second_router_loses_no_request(tmp_path: Path) -> None:
    """Under load one of two routers is drained; a client that balances by health sees no error."""
    triton = await FakeTriton(default=Script(tokens=("a", "b"), step_s=0.01)).start()
    toml = mesh_toml([("e0", triton.address)]).replace("lame_duck_s = 0.0", "lame_duck_s = 1.0")
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": SERVICE},
    }
    with router_process(folders[0], toml) as one, router_process(folders[1], toml) as two:
        options = [("grpc.service_config", json.dumps(config))]
        target = f"ipv4:{one.address},{two.address}"
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)
            errors: list[str] = []
            done_count = 0
            stop = asyncio.Event()

            async def load() -> None:
                nonlocal done_count
                while not stop.is_set():
                    try:
                        await stub.Generate(request(), timeout=LIMIT_S, wait_for_ready=True)
                        done_count += 1
                    except grpc.aio.AioRpcError as error:
                        errors.append(f"{error.code().name}: {error.details()}")

            workers = [asyncio.ensure_future(load()) for _ in range(8)]
            await until(lambda: done_count > 20, "both routers are under load")
            one.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(one.process.wait, LIMIT_S) == 0
            before = done_count
            await until(lambda: done_count > before + 20, "the second router goes on alone")
            stop.set()
            await asyncio.gather(*workers)
            assert errors == []
    await triton.stop()


async def test_calls_that_meet_the_very_end_of_a_drain_are_answered(tmp_path: Path) -> None:
    """A client that never looks at health calls both routers until one is gone; it loses none."""
    triton = await FakeTriton(default=Script(tokens=("a",))).start()
    toml = mesh_toml([("e0", triton.address)]).replace("lame_duck_s = 0.0", "lame_duck_s = 0.1")
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with router_process(folders[0], toml) as one, router_process(folders[1], toml) as two:
        async with AsyncClient([one.address, two.address]) as client:
            stop = asyncio.Event()

            answers: list[str] = []

            async def load() -> None:
                while not stop.is_set():
                    answer = await client.generate("hello", task="piqa", deadline_s=20.0)
                    answers.append(answer.text)

            workers = [asyncio.ensure_future(load()) for _ in range(24)]
            await until(lambda: len(answers) > 50, "both routers are under load")
            one.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(one.process.wait, LIMIT_S) == 0
            stop.set()
            await asyncio.gather(*workers)
            assert set(answers) == {"a"}
    await triton.stop()
