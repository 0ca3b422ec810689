"""The router's real process in front of a real Triton with paced tiers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.details import details_of
from tests.fakes.router_process import RouterProcess, mesh_toml, router_process
from tests.integration.conftest import PacedTriton
from tests.unit.deploy.manifests import ROOT
from tests.waiting import LIMIT_S, until
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

pytestmark = pytest.mark.triton


def toml_of(paced_triton: PacedTriton, router: str = "", **others: Any) -> str:
    """Settings for the paced endpoints; others as those of `mesh_toml`."""
    text = mesh_toml([], router=router, **others)
    head, own = text.split("[router_inference]\n")
    for entry in paced_triton.endpoints:
        head += "[[mesh.endpoints]]\n"
        for key in ("name", "address", "device", "metrics_address"):
            if entry.get(key):
                head += f'{key} = "{entry[key]}"\n'
        head += f"tiers = {json.dumps(list(entry['tiers']))}\n"
        if entry.get("models"):
            pairs = ", ".join(f'{tier} = "{model}"' for tier, model in entry["models"].items())
            head += f"models = {{ {pairs} }}\n"
    return head + "[router_inference]\n" + own


@pytest.fixture(scope="module")
def router(
    paced_triton: PacedTriton, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RouterProcess]:
    """One router process for the tests of this module."""
    folder = tmp_path_factory.mktemp("router")
    text = toml_of(paced_triton).replace('metrics_listen = ""', 'metrics_listen = "127.0.0.1:0"')
    with router_process(folder, text) as started:
        yield started


@pytest_asyncio.fixture
async def channel(router: RouterProcess) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the router."""
    async with grpc.aio.insecure_channel(router.address) as opened:
        yield opened


def spec(**fields: Any) -> pb2.GenerationSpec:
    """A good request: 120 bytes are 30 tokens of prompt."""
    return pb2.GenerationSpec(**{"prompt": "word " * 24, "task": "piqa", **fields})


async def test_generate_is_answered_by_a_real_tier(channel: grpc.aio.Channel) -> None:
    """Text, tokens, tier, timings: from the paced tier, in time."""
    stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)
    request = pb2.GenerateRequest(spec=spec(max_output_tokens=8, tier="large"))
    response = await stub.Generate(request, timeout=LIMIT_S)
    done = response.completion
    assert (done.tier, done.output_token_count, done.on_time) == ("large", 8, True)
    assert done.timings.first_token.ToTimedelta() < done.timings.total.ToTimedelta()
    # 8 iterations of the large tier take at least 84 ms by its profile.
    assert done.timings.total.ToTimedelta().total_seconds() >= 0.08
    assert response.text


async def test_a_stream_arrives_piece_by_piece(channel: grpc.aio.Channel) -> None:
    """Chunks before the completion, spread over the answer's time, summing up to its tokens."""
    stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)
    stamps, tokens, completion = [], 0, None
    request = pb2.GenerateStreamRequest(spec=spec(max_output_tokens=16, tier="large"))
    async for message in stub.GenerateStream(request, timeout=LIMIT_S):
        if message.WhichOneof("event") == "chunk":
            stamps.append(time.monotonic())
            tokens += message.chunk.token_count
        else:
            completion = message.completion
    assert completion is not None
    assert tokens == completion.output_token_count == 16
    assert len(stamps) >= 4
    assert stamps[-1] - stamps[0] > 0.05


async def test_a_deadline_stops_the_work_in_triton(
    channel: grpc.aio.Channel, paced_triton: PacedTriton
) -> None:
    """DEADLINE_EXCEEDED with ErrorInfo; the tier is free again at once."""
    stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)
    # The predictor knows nothing of such long answers, so admission lets it pass. 1500 tokens
    # would hold the device for sixteen seconds.
    request = pb2.GenerateRequest(spec=spec(max_output_tokens=1_500, tier="large"))
    request.spec.deadline.FromMilliseconds(400)
    started = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(request, timeout=LIMIT_S)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    info = details_of(caught.value)["ErrorInfo"]
    assert info.reason == "DEADLINE_EXCEEDED"
    assert 0.35 < time.monotonic() - started < 8.0
    request = pb2.GenerateRequest(spec=spec(max_output_tokens=4, tier="large"))
    request.spec.deadline.FromSeconds(20)
    fresh = await stub.Generate(request, timeout=LIMIT_S)
    assert fresh.completion.timings.total.ToTimedelta().total_seconds() < 8.0


async def test_a_burst_is_served_in_time_by_stepping_down(channel: grpc.aio.Channel) -> None:
    """More than the large tier can carry: the policy steps down, nearly all are on time."""
    stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)
    outcomes: list[tuple[str, bool]] = []

    async def one() -> None:
        # 500 tokens of prompt take the large tier 42 ms: two devices carry some 45 a second.
        request = pb2.GenerateRequest(spec=spec(prompt="word " * 400, max_output_tokens=8))
        request.spec.deadline.FromMilliseconds(1500)
        try:
            response = await stub.Generate(request, timeout=20.0)
            outcomes.append((response.completion.tier, response.completion.on_time))
        except grpc.aio.AioRpcError as error:
            outcomes.append((error.code().name, False))

    tasks = []
    for _ in range(300):
        tasks.append(asyncio.ensure_future(one()))
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    assert sum(on_time for _, on_time in outcomes) >= 0.8 * len(outcomes), outcomes
    assert len({tier for tier, _ in outcomes}) > 1


async def test_status_and_metrics_account_for_everything(
    channel: grpc.aio.Channel, router: RouterProcess
) -> None:
    """Nothing is in flight at the end, every candidate usable, ends counted in Prometheus."""
    stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)
    await stub.Generate(pb2.GenerateRequest(spec=spec()), timeout=LIMIT_S)

    async def is_idle() -> bool:
        # Tiers may still end what was late.
        status = await stub.GetRouterStatus(pb2.GetRouterStatusRequest(), timeout=LIMIT_S)
        assert len(status.candidates) == 6
        return status.in_flight_count == 0 and all(
            each.usable and not each.own_in_flight_count for each in status.candidates
        )

    await until(is_idle, "nothing is in flight and every candidate is usable")
    reader, writer = await asyncio.open_connection(*router.metrics.split(":"))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await asyncio.wait_for(reader.read(), LIMIT_S)).decode()
    writer.close()
    assert 'outcome="on_time"' in text
    assert "tiercel_decision_seconds_count" in text


async def test_health_says_serving(channel: grpc.aio.Channel) -> None:
    """grpc.health.v1, for the server and for the service."""
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", "tiercel.router_inference.v1.RouterInferenceService"):
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=LIMIT_S)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_the_request_path_loads_no_torch_and_no_redis_call(
    paced_triton: PacedTriton, tmp_path: Path
) -> None:
    """A process that has served a request has loaded neither torch nor the trainer."""
    program = tmp_path / "probe.py"
    program.write_text(_PROBE, encoding="utf-8")
    (tmp_path / "tiercel.toml").write_text(toml_of(paced_triton), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "tiercel.toml")],
        capture_output=True, text=True, timeout=120.0, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    heavy = json.loads(result.stdout.splitlines()[-1])
    assert heavy == []


_PROBE = """
import asyncio, json, sys
from contextlib import AsyncExitStack
from pathlib import Path
import grpc.aio
from services.common.settings import load_settings
from services.router_inference.app import build_app
from services.router_inference.settings import Settings
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

async def main():
    app = build_app(load_settings(Settings, path=Path(sys.argv[1]), environ={}))
    async with AsyncExitStack() as stack:
        running = await app.start(stack)
        await running.server.start()
        async with grpc.aio.insecure_channel(str(running.server.address)) as channel:
            stub = pb2_grpc.RouterInferenceServiceStub(channel)
            spec = pb2.GenerationSpec(prompt="hello", task="piqa")
            await stub.Generate(pb2.GenerateRequest(spec=spec), timeout=30.0)
        await running.server.stop(1.0)
    # numba, and scipy for its products of matrices, are what decisions are compiled with.
    heavy = {"torch", "gymnasium", "trainer", "tensorboard", "matplotlib"}
    print(json.dumps(sorted(heavy & {name.split(".")[0] for name in sys.modules})))

asyncio.run(main())
"""
