"""A policy that passed its gates and is bad all the same: the mesh goes back, in real processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from services.cli.app import run
from tests.conftest import RedisServer
from tests.fakes.mesh_processes import mesh_processes
from tests.fakes.router_process import RouterProcess
from tests.fakes.triton import FakeTriton, Script
from tests.unit.services.router_inference.policy.test_trial import ALWAYS_LARGE
from tests.waiting import until
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as router_grpc
from tiercel.trainer.v1 import trainer_service_pb2 as pb

pytestmark = pytest.mark.timeout(400)
LIMIT_S = 180.0
CALLERS = 16
LATE = Script(tokens=("a",), step_s=4.0)
"""Of the tier that the poison takes; the others answer long before the deadline of 2 s."""
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
async def running_mesh(folder: Path, redis: RedisServer) -> AsyncIterator[Mesh]:
    """Runs it under load."""
    async with AsyncExitStack() as stack:
        triton = await FakeTriton(default=Script(tokens=("a",), step_s=0.1)).start()
        stack.push_async_callback(triton.stop)
        running = mesh_processes(
            folder,
            [("e0", triton.address)],
            redis_url=redis.url,
            routers={"a": ROUTER, "b": ROUTER + "workers = 2\n"},
            deadline_s=2.0,
            trainer_module="tests.fakes.open_gate",
        )
        processes = await stack.enter_async_context(running)
        routers: list[Any] = []
        for process in processes.routers:
            channel = grpc.aio.insecure_channel(process.address)
            routers.append(
                router_grpc.RouterInferenceServiceStub(await stack.enter_async_context(channel))
            )
        logs = [process.log_path for process in (processes.trainer, *processes.routers)]
        mesh = Mesh(triton, processes.trainer, processes.trainer_stub, routers, logs)
        calls = [asyncio.create_task(mesh.call(number)) for number in range(CALLERS)]
        try:
            yield mesh
        finally:
            mesh.stop.set()
            await asyncio.gather(*calls, return_exceptions=True)


async def test_the_mesh_goes_back_from_a_policy_that_misses(
    redis_server: RedisServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its requests all miss; it is rejected, and the policy before it decides everywhere again."""
    async with running_mesh(tmp_path, redis_server) as mesh:
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
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """It was killed in the midst of the watch; each router, both its workers, is back by itself."""
    async with running_mesh(tmp_path, redis_server) as mesh:
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
