"""The router's application inside a test (real gRPC server, real parts, port 0), or its process."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from services.common.clock import SystemClock
from services.common.lifecycle import Server
from services.common.log import get_logger
from services.common.mesh_settings import load_mesh_files
from services.common.settings import load_settings
from services.common.telemetry import Telemetry
from services.router_inference.app import RouterInference
from services.router_inference.core import Core
from services.router_inference.settings import Settings
from tests.unit.deploy.manifests import ROOT
from tests.waiting import LIMIT_S, until_sync
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

TIERS = ("small", "medium", "large")
TASKS = ("hellaswag", "piqa", "copa", "openbookqa")


def mesh_toml(
    endpoints: Sequence[tuple[str, str]],
    *,
    monitor: str = "",
    trainer: str = "",
    redis_url: str = "",
    tiers: Sequence[str] = TIERS,
    router: str = "",
    deadline_s: float = 3.0,
    endpoint: str = "",
    mesh: str = "",
) -> str:
    """Returns a settings file: (name, address) per endpoint, all tiers on each.

    Args:
        endpoints: Name and address of each.
        monitor: Address of the load monitor.
        trainer: Address of the trainer.
        redis_url: Redis.
        tiers: Tiers every endpoint serves.
        router: More lines of [router_inference].
        deadline_s: Default deadline of every task but `openbookqa`, which is soft.
        endpoint: More lines of each endpoint.
        mesh: More lines of [mesh].
    """
    root = ROOT
    names = ", ".join(f'"{tier}"' for tier in TIERS)
    served = ", ".join(f'"{tier}"' for tier in tiers)
    lines = [
        "[mesh]",
        f"tiers = [{names}]",
        f'profile = "{root / "profiles" / "opt-a100.toml"}"',
        f'quality = "{root / "quality" / "opt.toml"}"',
        f'load_monitor_address = "{monitor}"',
        f'trainer_address = "{trainer}"',
        f'redis_url = "{redis_url}"',
        mesh,
    ]
    for task in TASKS:
        lines += ["[[mesh.tasks]]", f'name = "{task}"', f"default_deadline_s = {deadline_s}"]
        if task == "openbookqa":
            lines.append('reward = "soft"')
    for name, address in endpoints:
        lines += ["[[mesh.endpoints]]", f'name = "{name}"', f'address = "{address}"']
        lines += [f"tiers = [{served}]", endpoint]
    lines += [
        "[router_inference]",
        'listen = "127.0.0.1:0"',
        'metrics_listen = ""',
        "lame_duck_s = 0.0",
        "grace_s = 2.0",
        router,
    ]
    return "\n".join(lines) + "\n"


@dataclass
class RunningRouter:
    """A router inside the test's own loop.

    Attributes:
        app: The application.
        core: Its parts.
        address: Its gRPC address.
        channel: A channel to it.
        stub: Its stub.
        server: Its server.
        addresses: All of its addresses by what for; operating calls are taken at `address` if there
            is no `operate`.
    """

    app: RouterInference
    core: Core
    address: str
    channel: grpc.aio.Channel
    stub: Any
    server: Server
    addresses: Mapping[str, str]


@asynccontextmanager
async def running_router(
    folder: Path,
    toml: str,
    *,
    telemetry: Telemetry | None = None,
) -> AsyncIterator[RunningRouter]:
    """Runs a router with a settings file until the block ends."""
    path = folder / "tiercel.toml"
    path.write_text(toml, encoding="utf-8")
    settings = load_settings(Settings, path=path, environ={})
    app = RouterInference(
        settings=settings,
        files=load_mesh_files(settings.mesh),
        clock=SystemClock(),
        log=get_logger("router-under-test"),
        telemetry=telemetry or Telemetry(None, random.Random(1)),
    )
    async with AsyncExitStack() as stack:
        running = await app.start(stack)
        await running.server.start()
        tasks = [asyncio.ensure_future(task()) for task in running.tasks.values()]
        try:
            await asyncio.wait_for(running.ready(), LIMIT_S)
            await running.server.set_serving(True)
            address = str(running.server.address)
            async with grpc.aio.insecure_channel(
                address, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                assert app.core is not None
                stub = pb2_grpc.RouterInferenceServiceStub(channel)
                addresses = {name: str(at) for name, at in running.server.addresses.items()}
                yield RunningRouter(
                    app, app.core, address, channel, stub, running.server, addresses
                )
        finally:
            await running.server.stop(0.5)
            await running.flush()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class RouterProcess:
    """A running router process."""

    process: subprocess.Popen[bytes]
    address: str
    metrics: str
    log_path: Path


@contextmanager
def router_process(
    folder: Path,
    toml: str,
    *options: str,
    environ: Mapping[str, str] | None = None,
    service: str = "router_inference",
    module: str = "",
    place: str = "grpc",
) -> Iterator[RouterProcess]:
    """Starts `python -m services.SERVICE`, or a module, waits until it serves, ends it at last."""
    config, ready, log = folder / "tiercel.toml", folder / "ready.json", folder / "router.log"
    config.write_text(toml, encoding="utf-8")
    command = [sys.executable, "-m", module or f"services.{service}", "--config", str(config)]
    command += ["--ready-file", str(ready), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
        )
    try:
        until_sync(lambda: ready.exists() or process.poll() is not None, "the router serves")
        assert ready.exists(), log.read_text()
        addresses = json.loads(ready.read_text())["addresses"]
        yield RouterProcess(process, addresses[place], addresses.get("metrics", ""), log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
