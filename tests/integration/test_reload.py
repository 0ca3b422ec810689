"""SIGHUP: real processes read their settings file again while they serve."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import grpc.aio
import pytest_asyncio

from tests.fakes.router_process import RouterProcess, mesh_toml, router_process
from tests.fakes.triton import FakeTriton
from tests.waiting import LIMIT_S, until
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as monitor_grpc
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

REQUEST = pb2.GenerateRequest(spec=pb2.GenerationSpec(prompt="hello", task="piqa"))
PLAIN = "compiled = false\nlearn_slowness = false\n"


@pytest_asyncio.fixture
async def tritons() -> Any:
    """Two endpoints."""
    fakes = [await FakeTriton().start(), await FakeTriton().start()]
    yield fakes
    for fake in fakes:
        await fake.stop()


async def hang_up(process: RouterProcess, folder: Path, text: str, event: str) -> str:
    """Writes the settings file and sends SIGHUP; returns the log since, once it has an event."""
    seen = len(process.log_path.read_text())
    (folder / "tiercel.toml").write_text(text, encoding="utf-8")
    process.process.send_signal(signal.SIGHUP)
    await until(lambda: event in process.log_path.read_text()[seen:], f"{event} is logged")
    return process.log_path.read_text()[seen:]


async def test_a_router_takes_what_can_change_and_names_the_rest(
    tmp_path: Path, tritons: list[FakeTriton]
) -> None:
    """Policy, deadlines, limits and endpoints; a broken file changes nothing; SIGTERM drains."""
    first, second = ((f"e{i}", fake.address) for i, fake in enumerate(tritons))
    toml = mesh_toml([first], router=PLAIN, deadline_s=10.0)
    with router_process(tmp_path, toml) as process:
        async with grpc.aio.insecure_channel(process.address) as channel:
            stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)

            async def answered() -> pb2.Completion:
                reply: pb2.GenerateResponse = await stub.Generate(REQUEST, timeout=LIMIT_S)
                return reply.completion

            assert ((await answered()).policy, len(tritons[0].received)) == ("price", 1)
            own, longest = 'policy = "static-small"\ngrace_s = 5.0\n', "max_prompt_bytes = 9"
            edited = mesh_toml([second], router=PLAIN + own, deadline_s=25.0, mesh=longest)
            edited = edited.replace("grace_s = 2.0\n", "")
            said = await hang_up(process, tmp_path, edited, "setting_needs_restart")
            assert "setting=router_inference.grace_s" in said
            assert said.count("setting_needs_restart") == 1
            assert "mesh.endpoints, mesh.max_prompt_bytes, mesh.tasks, router" in said
            completion = await answered()
            assert (completion.policy, completion.endpoint) == ("static-small", "e1")
            assert tritons[1].received[0].timeout_us > 15e6
            broken = edited.replace(longest, 'max_prompt_bytes = "nine"')
            said = await hang_up(process, tmp_path, broken, "settings_not_reloaded")
            assert len(said.splitlines()) == 1
            assert "max_prompt_bytes" in said
            assert (await answered()).endpoint == "e1"
        process.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.process.wait, LIMIT_S) == 0


async def test_a_monitor_takes_endpoints(tmp_path: Path) -> None:
    """An endpoint of the edited file is in the state; what cannot change is named."""
    own = '[load_monitor]\nlisten = "127.0.0.1:0"\nmetrics_listen = ""\n'
    ends = [("e0", "127.0.0.1:1"), ("e1", "127.0.0.1:2")]
    with router_process(tmp_path, mesh_toml(ends[:1]) + own, service="load_monitor") as process:
        text = mesh_toml(ends) + own + 'monitor_id = "m"\n[log]\nlevel = "debug"\n'
        said = await hang_up(process, tmp_path, text, "setting_needs_restart")
        assert "log.level, mesh.endpoints" in said
        assert "setting=load_monitor.monitor_id" in said
        async with grpc.aio.insecure_channel(process.address) as channel:
            stub: Any = monitor_grpc.LoadMonitorServiceStub(channel)

            async def names() -> list[str]:
                request = monitor_pb.GetSystemStateRequest()
                state = (await stub.GetSystemState(request, timeout=LIMIT_S)).state
                return [each.endpoint.endpoint for each in state.endpoints]

            async def has_both() -> bool:
                return await names() == ["e0", "e1"]

            await until(has_both, "the state has the new endpoint")
