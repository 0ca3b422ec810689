"""A policy that passed its gates and is bad all the same: the mesh goes back, in real processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from services.cli.app import run
from tests.conftest import RedisServer
from tests.fakes.router_process import RouterProcess, mesh_toml, router_process
from tests.fakes.triton import FakeTriton, Script
from tests.unit.services.router_inference.policy.test_trial import ALWAYS_LARGE
from tests.waiting import until
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as router_grpc
from tiercel.trainer.v1 import trainer_service_pb2 as pb
from tiercel.trainer.v1 import trainer_service_pb2_grpc as pb_grpc

pytestmark = pytest.mark.timeout(400)
LIMIT_S = 180.0
CALLERS = 16
LATE = Script(tokens=("a",), step_s=4.0)
"""Of the tier that the poison takes; the others answer long before the deadline of 2 s."""
TRAINER = """
[trainer]
listen = "{address}"
metrics_listen = ""
data_dir = "data"
poll_interval_s = 0.1
"""
ROUTER = """
policy = "static-small"
safety_net = false
learn_slowness = false
compiled = false
canary_decision_s = 1.0
eject_after_failures = 1000
silent_eject_s = 300.0
"""
"""Without what else would answer in time all the same: rescue, breakers, caution."""


@dataclass
class Mesh:
    """A mesh of processes: monitor, trainer, a router, and a router of two workers.

    Attributes:
        triton: the tiers.
        trainer: the trainer's process.
        trainer_stub: of the trainer.
        routers: stubs of the routers.
        logs: what the processes have logged.
        on_time: answers in time so far.
        stop: ends the calls.
    """

    triton: FakeTriton
    trainer: RouterProcess
    trainer_stub: Any
    routers: list[Any]
    logs: list[Path]
    on_time: int = 0
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, number: int) -> None:
        """Asks one router after the other until the mesh stops."""
        spec = router_pb.GenerationSpec(prompt="hello", task="piqa")
        while not self.stop.is_set():
            router = self.routers[number % len(self.routers)]
            number += 1
            with suppress(grpc.aio.AioRpcError):
                await router.Generate(router_pb.GenerateRequest(spec=spec), timeout=20.0)
                self.on_time += 1

    async def policies(self) -> set[str]:
        """Returns the policies in use."""
        request = router_pb.GetRouterStatusRequest()
        return {(await router.GetRouterStatus(request)).policy for router in self.routers}

    async def statuses(self) -> list[Any]:
        """Returns the routers' status."""
        request = router_pb.GetRouterStatusRequest()
        return [await router.GetRouterStatus(request) for router in self.routers]

    async def promote(self) -> str:
        """Publishes the poison and promotes it at once; returns its version."""
        request = pb.PublishPolicyRequest(snapshot=ALWAYS_LARGE)
        published = await self.trainer_stub.PublishPolicy(request)
        version: str = published.policy.policy_version
        promote = pb.PromotePolicyRequest(policy="dqn", policy_version=version, in_steps=False)
        await self.trainer_stub.PromotePolicy(promote, timeout=LIMIT_S)
        return version

    def events(self, name: str) -> list[dict[str, Any]]:
        """Returns the lines of a name in all logs."""
        lines = [line for path in self.logs for line in path.read_text().splitlines()]
        found = []
        for line in lines:
            with suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and name in (entry.get("event"), entry.get("message")):
                    found.append(entry)
        return found


@asynccontextmanager
async def running_mesh(
    folder: Path, redis: RedisServer, free_port: Callable[[], int]
) -> AsyncIterator[Mesh]:
    """Runs it under load."""
    async with AsyncExitStack() as stack:
        triton = await FakeTriton(default=Script(tokens=("a",), step_s=0.1)).start()
        stack.push_async_callback(triton.stop)
        monitor, trainer = (f"127.0.0.1:{free_port()}" for _ in range(2))

        def toml(router: str = "") -> str:
            text = mesh_toml(
                [("e0", triton.address)],
                monitor=monitor,
                trainer=trainer,
                redis_url=redis.url,
                router=router,
                deadline_s=2.0,
            )
            return text + TRAINER.format(address=trainer) + '[log]\nformat = "json"\n'

        def start(module: str, name: str, router: str = "", *options: str) -> RouterProcess:
            own = folder / name
            own.mkdir()
            process = router_process(own, toml(router), *options, module=module)
            return stack.enter_context(process)

        listen = (f"load_monitor.listen={monitor}", "load_monitor.metrics_listen=")
        options = [word for each in listen for word in ("--set", each)]
        start("services.load_monitor", "monitor", "", *options)
        trainer_process = start("tests.fakes.open_gate", "trainer")
        processes = [
            start("services.router_inference", "a", ROUTER),
            start("services.router_inference", "b", ROUTER + "workers = 2\n"),
        ]
        routers: list[Any] = []
        for process in processes:
            channel = grpc.aio.insecure_channel(process.address)
            routers.append(
                router_grpc.RouterInferenceServiceStub(await stack.enter_async_context(channel))
            )
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(trainer))
        logs = [process.log_path for process in (trainer_process, *processes)]
        stub = pb_grpc.TrainerServiceStub(channel)
        mesh = Mesh(triton, trainer_process, stub, routers, logs)
        calls = [asyncio.create_task(mesh.call(number)) for number in range(CALLERS)]
        try:
            yield mesh
        finally:
            mesh.stop.set()
            await asyncio.gather(*calls, return_exceptions=True)


async def test_the_mesh_goes_back_from_a_policy_that_misses(
    redis_server: RedisServer,
    tmp_path: Path,
    free_port: Callable[[], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its requests all miss; it is rejected, and the policy before it decides everywhere again."""
    async with running_mesh(tmp_path, redis_server, free_port) as mesh:
        mesh.triton.scripts["large"] = LATE
        await until(lambda: mesh.on_time >= 400, "there is something to compare with", LIMIT_S)
        version = await mesh.promote()
        request = pb.GetPolicyRequest(policy="dqn", policy_version=version)

        async def rejected() -> Any:
            policy = (await mesh.trainer_stub.GetPolicy(request)).policy
            # The mesh goes back first; a moment later the step tells of it.
            return policy if policy.steps[-1].stage == pb.POLICY_STAGE_REJECTED else None

        policy = await until(rejected, "it is rejected", LIMIT_S)
        assert "WATCH_MISSES" in policy.rejection
        assert policy.steps[-1].verdict == pb.ROLLOUT_VERDICT_WORSE

        async def is_back() -> bool:
            return await mesh.policies() == {"static-small"}

        await until(is_back, "both routers are back", LIMIT_S)
        served = mesh.on_time
        await until(lambda: mesh.on_time >= served + 100, "requests are in time again", LIMIT_S)
        arguments = ["policy", "list", "--trainer", mesh.trainer.address]
        assert await asyncio.to_thread(run, arguments) == 0
        assert "ended as went back" in capsys.readouterr().out
        arguments = ["policy", "show", version, "--trainer", mesh.trainer.address]
        assert await asyncio.to_thread(run, arguments) == 0
        assert "went back" in capsys.readouterr().out
        stages = [step["stage"] for step in mesh.events("watch_step")]
        assert stages == ["under_way", "went_back"]


async def test_routers_go_back_without_the_trainer(
    redis_server: RedisServer, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """It was killed in the midst of the watch; each router, both its workers, is back by itself."""
    async with running_mesh(tmp_path, redis_server, free_port) as mesh:
        await until(lambda: mesh.on_time >= 400, "there is something to compare with", LIMIT_S)
        await mesh.promote()

        async def is_watched() -> bool:
            return all(each.watched_activation for each in await mesh.statuses())

        await until(is_watched, "both routers watch it", LIMIT_S)
        mesh.trainer.process.kill()
        mesh.triton.scripts["large"] = LATE

        async def is_back() -> bool:
            return await mesh.policies() == {"static-small"}

        await until(is_back, "both routers are back", LIMIT_S)
        await until(
            lambda: len(mesh.events("policy_went_back")) >= 3, "both workers of one, too", LIMIT_S
        )
        problems = [each.watch_problem for each in await mesh.statuses()]
        assert all("WATCH_MISSES" in each for each in problems)
