"""A router and a monitor whose endpoints speak OpenAI: the same path, another client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from tests.details import details_of
from tests.fakes.openai_door import door_toml, running_door
from tests.fakes.openai_server import FakeOpenAI, Script
from tests.fakes.router_process import TIERS, RunningRouter, mesh_toml, running_router
from tests.fakes.triton import FakeTriton
from tests.integration.test_load_monitor import serving
from tests.waiting import LIMIT_S, until
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

OPENAI = 'protocol = "openai"'


@pytest_asyncio.fixture
async def servers() -> AsyncIterator[list[FakeOpenAI]]:
    """Two servers; tests may stop and start them."""
    started = [await FakeOpenAI(models=TIERS).start() for _ in range(2)]
    yield started
    for each in started:
        await each.stop()


def toml(*servers: FakeOpenAI, router: str = "", **options: Any) -> str:
    """Returns the settings of a mesh of these servers."""
    places = [(f"e{index}", each.address) for index, each in enumerate(servers)]
    return mesh_toml(places, endpoint=OPENAI, router=router, **options)


def request_of(kind: Any = pb2.GenerateRequest, *, deadline_ms: int = 0, **fields: Any) -> Any:
    """Returns a good request."""
    request = kind(spec={"prompt": "hello", "task": "piqa", **fields})
    if deadline_ms:
        request.spec.deadline.FromMilliseconds(deadline_ms)
    return request


async def failure_of(call: Any) -> tuple[str, str]:
    """Returns status and reason of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, details_of(caught.value)["ErrorInfo"].reason


async def _rest_of(call: Any) -> list[Any]:
    return [each async for each in call]


async def stream_of(router: RunningRouter, **options: Any) -> list[Any]:
    """Returns the messages of a GenerateStream."""
    request = request_of(pb2.GenerateStreamRequest, **options)
    return await _rest_of(router.stub.GenerateStream(request, timeout=LIMIT_S))


async def test_answers_in_one_piece_and_streamed(tmp_path: Path, servers: list[FakeOpenAI]) -> None:
    """Text, counts and timings as from any endpoint; the server got what the client asked for."""
    servers[0].default = Script(tokens=("a", "b", "c", "d"), per_event=2, step_s=0.15)
    async with running_router(
        tmp_path, toml(servers[0], router="stream_coalesce_s = 0.0")
    ) as router:
        sampling = pb2.Sampling(temperature=0.5, seed=9)
        request = request_of(max_output_tokens=8, sampling=sampling, tier="medium")
        answer = await router.stub.Generate(request, timeout=LIMIT_S)
        assert (answer.text, answer.completion.output_token_count) == ("abcd", 4)
        assert answer.completion.on_time
        messages = await stream_of(router, max_output_tokens=4)
        chunks = [each.chunk for each in messages if each.WhichOneof("event") == "chunk"]
        assert [each.text for each in chunks if each.text] == ["ab", "cd"]
        done = messages[-1].completion
        assert sum(each.token_count for each in chunks) == done.output_token_count == 4
        assert done.finish_reason == "length"
        assert 0 < done.timings.first_token.ToMicroseconds() < done.timings.total.ToMicroseconds()
    first = servers[0].received[0].body
    assert (first["model"], first["prompt"], first["max_tokens"]) == ("medium", "hello", 8)
    assert (first["temperature"], first["seed"]) == (0.5, 9)


async def test_a_deadline_closes_the_stream_at_the_server(
    tmp_path: Path, servers: list[FakeOpenAI]
) -> None:
    """The server knows none, so that is how its work ends."""
    servers[0].default = Script(hang=True)
    async with running_router(tmp_path, toml(servers[0], router="safety_net = false")) as router:
        call = router.stub.Generate(request_of(deadline_ms=1000), timeout=LIMIT_S)
        assert await failure_of(call) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
        await until(lambda: servers[0].received[0].end == "cancelled", "the stream is closed")
        assert router.core.accounts.counts.late == 1


async def test_a_request_that_would_be_late_steps_down(
    tmp_path: Path, servers: list[FakeOpenAI]
) -> None:
    """The large tier hangs: its stream is closed, and a smaller one answers in time."""
    servers[0].scripts = {"large": Script(hang=True)}
    # The guard is what a busy machine may take of the time that a rescue leaves itself.
    settings = toml(servers[0], router='policy = "static-large"\nsafety_guard_s = 4.0')
    async with running_router(tmp_path, settings) as router:
        answer = await router.stub.Generate(request_of(deadline_ms=6000), timeout=LIMIT_S)
        assert answer.text == "abc"
        assert answer.completion.rescued
        assert answer.completion.tier in ("small", "medium")
        assert answer.completion.on_time
        assert [each.body["model"] for each in servers[0].received] == [
            "large", answer.completion.tier,
        ]  # fmt: skip
        await until(lambda: servers[0].received[0].end == "cancelled", "the stream is closed")


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_client_that_cancels_closes_the_stream(
    tmp_path: Path, servers: list[FakeOpenAI], method: str
) -> None:
    """The work at the server ends; the request counts as cancelled."""
    servers[0].default = Script(tokens=("a",) * 16, step_s=0.2)
    async with running_router(tmp_path, toml(servers[0])) as router:
        kind = pb2.GenerateRequest if method == "Generate" else pb2.GenerateStreamRequest
        call = getattr(router.stub, method)(request_of(kind, deadline_ms=9000), timeout=LIMIT_S)
        if method == "GenerateStream":
            await call.read()
        await until(lambda: servers[0].received, "the request reaches the server")
        call.cancel()
        await until(lambda: servers[0].received[0].end == "cancelled", "the stream is closed")
        await until(lambda: router.core.accounts.counts.cancelled == 1, "it counts as cancelled")


async def test_a_server_that_dies_costs_no_request(
    tmp_path: Path, servers: list[FakeOpenAI]
) -> None:
    """What it had not begun to answer is answered by the other one."""
    for each in servers:
        each.default = Script(gate=asyncio.Event())
    async with running_router(tmp_path, toml(*servers, deadline_s=9.0)) as router:
        call = router.stub.Generate(request_of(), timeout=LIMIT_S)
        asked = await until(lambda: [s for s in servers if s.received], "one is asked")
        other = next(each for each in servers if each is not asked[0])
        assert other.default.gate is not None
        other.default.gate.set()
        await asked[0].stop()
        answer = await call
        assert (answer.text, answer.completion.retry_count) == ("abc", 1)
        for _ in range(5):
            assert (await router.stub.Generate(request_of(), timeout=LIMIT_S)).text == "abc"
        assert router.core.accounts.counts.on_time == 6


async def test_an_answer_that_breaks_off_is_a_failure(
    tmp_path: Path, servers: list[FakeOpenAI]
) -> None:
    """The client has a part of it and is told that it is no answer."""
    servers[0].default = Script(tokens=("a",) * 16, step_s=0.1)
    async with running_router(tmp_path, toml(servers[0], deadline_s=9.0)) as router:
        call = router.stub.GenerateStream(request_of(pb2.GenerateStreamRequest), timeout=LIMIT_S)
        assert (await anext(aiter(call))).chunk.text
        await servers[0].stop()
        assert (await failure_of(_rest_of(call)))[0] == "UNAVAILABLE"
        assert router.core.accounts.counts.failed == 1


async def test_what_a_server_refuses_closes_it_to_nobody(
    tmp_path: Path, servers: list[FakeOpenAI]
) -> None:
    """A bad request, however often, is its own fault; an overload sends it elsewhere."""
    patient = toml(*servers, router="silent_eject_s = 60.0\n")
    async with running_router(tmp_path, patient) as router:
        for status in (400, 422):
            for each in servers:
                each.default = Script(status=status)
            for _ in range(4):
                call = router.stub.Generate(request_of(), timeout=LIMIT_S)
                assert await failure_of(call) == ("INVALID_ARGUMENT", "TIER_REFUSED_REQUEST")
        servers[1].default = Script()
        for status in (429, 503):
            servers[0].default = Script(status=status)
            for _ in range(4):
                answer = await router.stub.Generate(request_of(), timeout=LIMIT_S)
                assert answer.completion.endpoint == "e1"
        servers[0].default = Script()
        usable = await router.stub.GetRouterStatus(pb2.GetRouterStatusRequest(), timeout=LIMIT_S)
        assert all(each.usable for each in usable.candidates)


async def test_the_monitor_asks_such_a_server_for_its_health(
    tmp_path: Path, servers: list[FakeOpenAI]
) -> None:
    """Ready, queues from vLLM's own page, ill, a model that is gone, and one that joins."""
    server, other = servers
    server.waiting, server.api_key = 5, "k"
    endpoint = f'{OPENAI}\nmetrics_address = "{server.address}"\napi_key_file = "key"'
    (tmp_path / "key").write_text("k\n")
    path = tmp_path / "mesh.toml"
    text = mesh_toml([("e0", server.address)], endpoint=endpoint)
    path.write_text(f'{text}[load_monitor]\nlisten = "127.0.0.1:0"\nmetrics_listen = ""\n')
    names = common_pb2.EndpointHealth.Name

    def health_of(state: Any) -> list[str]:
        return [names(each.health).removeprefix("ENDPOINT_HEALTH_") for each in state.endpoints]

    async with serving(path) as monitor:
        await monitor.wait_for(
            lambda s: (
                health_of(s) == ["READY"]
                and [each.queue_depth for each in s.endpoints[0].gauges] == [5, 5, 5]
            )
        )
        server.models = TIERS[:2]
        state = await monitor.wait_for(lambda s: health_of(s) == ["PARTIAL"])
        assert [each.ready for each in state.endpoints[0].gauges] == [True, True, False]
        server.is_ill = True
        state = await monitor.wait_for(lambda s: health_of(s) == ["DOWN"])
        assert "503" in state.endpoints[0].reason
        joins = common_pb2.Endpoint(
            endpoint="e1", address=other.address, tiers=[common_pb2.ServedTier(tier=TIERS[0])],
            protocol=common_pb2.ENDPOINT_PROTOCOL_OPENAI,
        )  # fmt: skip
        await monitor.stub.AddEndpoint(monitor_pb2.AddEndpointRequest(endpoint=joins))
        await monitor.wait_for(lambda s: health_of(s) == ["DOWN", "READY"])
        joins.protocol = 77  # type: ignore[assignment]
        joins.endpoint = "e2"
        call = monitor.stub.AddEndpoint(monitor_pb2.AddEndpointRequest(endpoint=joins))
        assert (await failure_of(call))[0] == "INVALID_ARGUMENT"


async def test_our_own_door_is_such_a_server(tmp_path: Path) -> None:
    """A mesh behind a mesh, by the door that refuses every field it does not know."""
    triton = await FakeTriton().start()
    (tmp_path / "door").mkdir()
    async with (
        running_router(
            tmp_path, mesh_toml([("e0", triton.address)], router='default_task = "piqa"')
        ) as behind,
        running_door(tmp_path / "door", door_toml([behind.address])) as door,
    ):
        address = door.url.removeprefix("http://")
        (tmp_path / "front").mkdir()
        settings = mesh_toml([("door", address)], endpoint=OPENAI)
        async with running_router(tmp_path / "front", settings) as router:
            request = request_of(tier="medium", sampling=pb2.Sampling(temperature=0.5))
            answer = await router.stub.Generate(request, timeout=LIMIT_S)
            assert (answer.text, answer.completion.output_token_count) == ("abc", 3)
            messages = await stream_of(router, tier="small")
            assert "".join(each.chunk.text for each in messages) == "abc"
    assert [each.model for each in triton.received] == ["medium", "small"]
    await triton.stop()
