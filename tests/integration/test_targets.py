"""A target set at the load monitor is held by every router, whoever is away: all of it real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from services.cli.app import run
from tests.conftest import RedisServer
from tests.fakes.router_process import TIERS, mesh_toml, router_process, running_router
from tests.fakes.triton import FakeTriton, Script
from tests.integration.test_load_monitor import Served, serving
from tests.waiting import LIMIT_S, until
from tiercel import AsyncClient
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as router_grpc


def write_monitor(folder: Path, toml: str, port: int) -> Path:
    """Writes the settings of a load monitor at a port, of the same mesh."""
    path = folder / "monitor.toml"
    monitor = f'[load_monitor]\nlisten = "127.0.0.1:{port}"\nmetrics_listen = ""\n'
    monitor += "lame_duck_s = 0.0\ngrace_s = 2.0\n"
    path.write_text(toml.partition("[router_inference]")[0] + monitor)
    return path


async def set_target(served: Served, task: str, target: float | None, **fields: Any) -> Any:
    """Sets a target, as an operator does."""
    request = pb.SetTargetRequest(task=task, target=target, **fields)
    return await served.stub.SetTarget(request, timeout=LIMIT_S)


async def held(stub: Any, task: str = "copa") -> float:
    """Returns the target that a router process holds."""
    status = await stub.GetRouterStatus(router_pb.GetRouterStatusRequest(), timeout=LIMIT_S)
    return float(next(each.target for each in status.tasks if each.task == task))


async def test_a_target_reaches_routers_and_outlives_the_monitor(
    tmp_path: Path, redis_server: RedisServer, free_port: Callable[[], int]
) -> None:
    """It is kept in Redis; a router without a monitor goes on with it, and gets the next news."""
    port = free_port()
    triton = await FakeTriton(default=Script(tokens=("a",), step_s=0.001)).start()
    toml = mesh_toml(
        [("e0", triton.address)], monitor=f"127.0.0.1:{port}", redis_url=redis_server.url
    )
    path = write_monitor(tmp_path, toml, port)
    try:
        async with running_router(tmp_path, toml) as router:
            assert await held(router.stub) == 0.99
            async with serving(path) as served:
                reply = await set_target(served, "copa", 0.999, reason="launch")
                assert reply.override.set_by.startswith("ipv4:127.0.0.1")
                await until(lambda: _holds(router.stub, 0.999), "the router holds the target")
                told = await served.wait_for(_told("copa", 0.999))
                assert [each.task for each in told.targets.overrides] == ["copa"]
                async with AsyncClient(router.address) as client:
                    answer = await client.generate("hi", task="copa", request_id="asked")
                assert answer.tier in TIERS
                explained = await router.stub.ExplainDecision(
                    router_pb.ExplainDecisionRequest(request_id="asked")
                )
                assert (explained.target, explained.policy_has_price) == (0.999, True)
                await served.wait_for(_answered("copa"))
            assert await held(router.stub) == 0.999
            async with serving(path) as served:
                assert await held(router.stub) == 0.999
                await set_target(served, "copa", None)
                await until(lambda: _holds(router.stub, 0.99), "the settings hold again")
                span = Duration(seconds=2)
                await set_target(served, "copa", 0.5, duration=span)
                await until(lambda: _holds(router.stub, 0.5), "the router holds the target")
                await until(lambda: _holds(router.stub, 0.99), "its time is over")
                await set_target(served, "copa", 0.9)
    finally:
        await triton.stop()


async def test_every_worker_holds_it_and_the_command_says_so(
    tmp_path: Path,
    redis_server: RedisServer,
    free_port: Callable[[], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`tiercel target set` waits until the routers hold it; `show` tells what was attained."""
    port = free_port()
    triton = await FakeTriton(default=Script(tokens=("a",), step_s=0.001)).start()
    toml = mesh_toml(
        [("e0", triton.address)],
        monitor=f"127.0.0.1:{port}",
        redis_url=redis_server.url,
        router="workers = 2\ncompiled = false",
    )
    path = write_monitor(tmp_path, toml, port)
    try:
        async with serving(path) as served:
            with router_process(tmp_path, toml) as router:
                await served.wait_for(lambda state: bool(state.routers))
                command = ["target", "set", "copa", "0.999", "--monitor", served.address]
                assert await asyncio.to_thread(run, command) == 0
                assert "1 of 1 routers hold it" in capsys.readouterr().err
                await until(
                    lambda: _all_hold(router.address, 0.999), "both workers hold the target"
                )
                async with AsyncClient(router.address, connections=4) as client:
                    for _ in range(12):
                        await client.generate("hi", task="copa", deadline_s=20.0)
                await served.wait_for(_answered("copa", 12))
                command = ["target", "show", "--json", "--monitor", served.address]
                capsys.readouterr()
                assert await asyncio.to_thread(run, command) == 0
                found = {each["task"]: each for each in json.loads(capsys.readouterr().out)}
                assert (found["copa"]["target"], found["copa"]["attained"]) == (0.999, 1.0)
                assert found["piqa"]["set_by"] == ""
    finally:
        await triton.stop()


async def _holds(stub: Any, target: float) -> bool:
    return await held(stub) == target


async def _all_hold(address: str, target: float) -> bool:
    """Asks over connections of their own, which the kernel spreads over the workers."""
    found = []
    for _ in range(8):
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            found.append(await held(router_grpc.RouterInferenceServiceStub(channel)))
    return set(found) == {target}


def _told(task: str, target: float) -> Callable[[Any], bool]:
    return lambda state: any(
        each.task == task and each.target == target
        for router in state.routers
        for each in router.task_attainments
    )


def _answered(task: str, count: int = 1) -> Callable[[Any], bool]:
    return lambda state: any(
        each.task == task and each.on_time_count >= count
        for router in state.routers
        for each in router.task_attainments
    )
