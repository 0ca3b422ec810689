"""A rollout over real services: Redis, load monitor, trainer, routers; tiers from a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import generate_latest

from services.cli.app import run
from services.common.settings import load_settings
from services.trainer import app as trainer_app
from services.trainer.settings import Settings
from tests.conftest import RedisServer
from tests.fakes.monitor import running_monitor
from tests.fakes.router_process import RunningRouter, mesh_toml, running_router
from tests.fakes.triton import FakeTriton, Script
from tests.integration.test_trainer import served
from tests.unit.services.router_inference.policy.test_trial import (
    ALWAYS_LARGE,
    AS_PRICE,
    snapshot_bytes,
)
from tests.waiting import until
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.trainer.v1 import trainer_service_pb2 as pb

pytestmark = pytest.mark.timeout(240)
LIMIT_S = 90.0
TRAINER = """
[trainer]
listen = "{address}"
metrics_listen = ""
data_dir = "data"
poll_interval_s = 0.1
shadow_decisions = 40
canary_share = 0.5
canary_effect = 0.1
switchback_pairs = 1
switchback_period_s = 3.0
"""


class FakeWorker:
    """The gate's simulator, which finds everything equal."""

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        """Takes anything."""

    async def call(self, method: str, *arguments: Any, **_options: Any) -> Any:
        """Scores all alike."""
        return [{"performance": 0.9, "availability": 0.99} for _ in arguments[1]]

    async def close(self) -> None:
        """Does nothing."""


@dataclass
class Mesh:
    """A mesh of two routers.

    Attributes:
        stub: of the trainer.
        address: of the trainer.
        triton: the tiers.
        routers: the routers.
    """

    stub: Any
    address: str
    triton: FakeTriton
    routers: list[RunningRouter]
    sent = 0

    async def serve(self, count: int) -> None:
        """Sends requests to both routers, some at a time."""

        async def one(number: int) -> None:
            router = self.routers[number % len(self.routers)]
            spec = router_pb.GenerationSpec(prompt="hello", task="piqa")
            with suppress(grpc.aio.AioRpcError):
                await router.stub.Generate(router_pb.GenerateRequest(spec=spec), timeout=20.0)

        for _ in range(0, count, 8):
            await asyncio.gather(*(one(self.sent + number) for number in range(8)))
            self.sent += 8

    async def rollout(self) -> Any:
        """Returns the rollout, None if there was none."""
        reply = await self.stub.ListPolicies(pb.ListPoliciesRequest())
        return reply.rollout if reply.HasField("rollout") else None

    async def serve_until(self, is_done: Callable[[Any], bool], what: str) -> Any:
        """Serves requests until a rollout is where it should be; returns it."""

        async def check() -> Any:
            found = await self.rollout()
            if is_done(found):
                return found
            await self.serve(16)
            return None

        return await until(check, what, LIMIT_S)

    async def publish(self, snapshot: bytes) -> str:
        """Publishes a snapshot; returns its version."""
        reply = await self.stub.PublishPolicy(pb.PublishPolicyRequest(snapshot=snapshot))
        version: str = reply.policy.policy_version
        return version

    async def command(self, *words: str) -> None:
        """Runs a `tiercel policy` command against the trainer."""
        arguments = ["policy", *words, "--trainer", self.address]
        assert await asyncio.to_thread(run, arguments) == 0

    async def info(self, version: str) -> Any:
        """Returns what the registry knows of a policy."""
        request = pb.GetPolicyRequest(policy="dqn", policy_version=version)
        return (await self.stub.GetPolicy(request)).policy

    async def is_tried_nowhere(self) -> bool:
        """Returns whether no router tries anything."""
        return all(router.core.trial.seen() is None for router in self.routers)


@asynccontextmanager
async def running_mesh(
    folder: Path,
    redis: RedisServer,
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    router: str,
    deadline_s: float = 1.0,
) -> AsyncIterator[Mesh]:
    """Runs it, with lines of the routers' settings."""
    monkeypatch.setattr(trainer_app, "Worker", FakeWorker)
    async with AsyncExitStack() as stack:
        triton = await FakeTriton().start()
        stack.push_async_callback(triton.stop)
        monitor, address = (f"127.0.0.1:{free_port()}" for _ in range(2))

        def toml(trainer: str = "") -> str:
            return mesh_toml(
                [("e0", triton.address)],
                monitor=monitor,
                trainer=trainer,
                redis_url=redis.url,
                router=router,
                deadline_s=deadline_s,
            )

        await stack.enter_async_context(running_monitor(folder, toml(), monitor))
        path = folder / "trainer.toml"
        path.write_text(toml() + TRAINER.format(address=address))
        settings = load_settings(Settings, path=path, environ={})
        stub, _ = await stack.enter_async_context(served(settings))
        routers: list[RunningRouter] = []
        for name in ("a", "b"):
            (folder / name).mkdir()
            running = running_router(folder / name, toml(address))
            routers.append(await stack.enter_async_context(running))
        yield Mesh(stub, address, triton, routers)


async def test_a_better_policy_goes_from_shadow_to_active(
    redis_server: RedisServer,
    tmp_path: Path,
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By live traffic of two routers; every step is told by the commands."""
    own = 'policy = "static-small"'
    mesh_of = running_mesh(tmp_path, redis_server, free_port, monkeypatch, own, 20.0)
    async with mesh_of as mesh:
        version = await mesh.publish(AS_PRICE)
        await mesh.command("promote", version, "--in-steps")
        assert "shadow" in capsys.readouterr().err
        await mesh.serve_until(lambda r: r.stage == pb.POLICY_STAGE_CANARY, "canary")
        await mesh.command("list", "--json")
        assert '"stage": "canary"' in capsys.readouterr().out
        await mesh.serve_until(lambda r: r.stage == pb.POLICY_STAGE_SWITCHBACK, "switchback")
        done = await mesh.serve_until(lambda r: r.stage == pb.POLICY_STAGE_ACTIVE, "active")
        assert "it earns no less when it decides everything" in done.reason
        info = await mesh.info(version)
        assert info.stage == pb.POLICY_STAGE_ACTIVE
        assert [step.verdict for step in info.steps] == [
            pb.ROLLOUT_VERDICT_UNSPECIFIED,
            pb.ROLLOUT_VERDICT_BETTER,
            pb.ROLLOUT_VERDICT_BETTER,
            pb.ROLLOUT_VERDICT_BETTER,
            pb.ROLLOUT_VERDICT_UNSPECIFIED,  # from here on it is watched
        ]
        await until(
            lambda: all(router.core.slot.version == version for router in mesh.routers),
            "both routers use it",
            LIMIT_S,
        )
        await until(mesh.is_tried_nowhere, "nothing is on trial", LIMIT_S)
        await mesh.command("show", version)
        assert "switchback (better)" in capsys.readouterr().out
        metrics = generate_latest(mesh.routers[0].app.registry).decode()
        drawn = '{arm="canary",outcome="on_time",priority="normal"}'
        assert f"tiercel_trial_requests_total{drawn}" in metrics
        # In 16 requests at a time on one event loop with everything else, this is no measurement.
        assert metrics.count("tiercel_shadow_decisions_total{") >= 1


async def test_a_canary_that_misses_is_rolled_back(
    redis_server: RedisServer,
    tmp_path: Path,
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a router or by the trainer, whoever is first; it is rejected, with the reason."""
    own = 'policy = "static-small"\nsafety_net = false\nlearn_slowness = false'
    async with running_mesh(tmp_path, redis_server, free_port, monkeypatch, own) as mesh:
        mesh.triton.scripts["large"] = Script(step_s=0.6)
        version = await mesh.publish(ALWAYS_LARGE)
        request = pb.PromotePolicyRequest(policy="dqn", policy_version=version, in_steps=True)
        await mesh.stub.PromotePolicy(request)
        await mesh.serve_until(lambda r: r.stage == pb.POLICY_STAGE_CANARY, "canary")
        await mesh.serve_until(lambda r: r.stage == pb.POLICY_STAGE_REJECTED, "rejected")
        info = await mesh.info(version)
        assert info.stage == pb.POLICY_STAGE_REJECTED
        assert "CANARY_MISSES" in info.rejection or "it earns less" in info.rejection
        await until(mesh.is_tried_nowhere, "nothing is on trial", LIMIT_S)
        assert {router.core.slot.name for router in mesh.routers} == {"static-small"}


async def test_a_rollout_by_hand(
    redis_server: RedisServer,
    tmp_path: Path,
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Paused, resumed, ended by a rollback, and by a pin, which keeps others from beginning."""
    async with running_mesh(tmp_path, redis_server, free_port, monkeypatch, "") as mesh:
        version = await mesh.publish(snapshot_bytes(0.01))
        await mesh.command("promote", version, "--in-steps")

        def are_tried() -> bool:
            return all(router.core.trial.seen() is not None for router in mesh.routers)

        await until(are_tried, "both routers try it", LIMIT_S)
        await mesh.command("pause", "--reason", "lunch")
        await until(mesh.is_tried_nowhere, "paused", LIMIT_S)
        assert (await mesh.rollout()).paused
        capsys.readouterr()
        await mesh.command("promote", version)
        await until(are_tried, "it goes on", LIMIT_S)
        await mesh.command("rollback", "--reason", "enough")
        assert "ended the rollout" in capsys.readouterr().err
        assert (await mesh.info(version)).stage == pb.POLICY_STAGE_PROPOSED
        await mesh.command("promote", version, "--in-steps")
        await mesh.command("use", "greedy")
        await until(mesh.is_tried_nowhere, "pinned", LIMIT_S)
        await mesh.command("list")
        assert "no rollout begins by itself" in capsys.readouterr().out
        assert {router.core.slot.name for router in mesh.routers} == {"greedy"}
