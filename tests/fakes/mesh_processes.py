"""A mesh of processes on loopback: load monitor, trainer and routers, before whatever tiers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from tests.fakes.ports import free_port
from tests.fakes.router_process import RouterProcess, mesh_toml, router_process
from tiercel.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc

_TRAINER = """
[trainer]
listen = "{address}"
metrics_listen = ""
data_dir = "data"
poll_interval_s = 0.1
hindsight_max_requests = 0
"""


@dataclass
class MeshProcesses:
    """What runs.

    Attributes:
        monitor: address of the load monitor.
        trainer: process of the trainer.
        trainer_stub: its stub.
        routers: processes of the routers, in the order asked for.
    """

    monitor: str
    trainer: RouterProcess
    trainer_stub: Any
    routers: list[RouterProcess]


@asynccontextmanager
async def mesh_processes(
    folder: Path,
    endpoints: Sequence[tuple[str, str]],
    *,
    redis_url: str,
    routers: Mapping[str, str],
    deadline_s: float,
    trainer_module: str = "",
) -> AsyncIterator[MeshProcesses]:
    """Runs it until the block ends.

    Args:
        folder: where settings and logs go, a folder each.
        endpoints: name and address of each.
        redis_url: Redis.
        routers: lines of [router_inference] by the router's name.
        deadline_s: default deadline of the tasks.
        trainer_module: the trainer's module; empty for the service itself.
    """
    monitor, trainer = (f"127.0.0.1:{free_port()}" for _ in range(2))

    def toml(router: str = "") -> str:
        text = mesh_toml(
            endpoints,
            monitor=monitor,
            trainer=trainer,
            redis_url=redis_url,
            router=router,
            deadline_s=deadline_s,
        )
        return text + _TRAINER.format(address=trainer) + '[log]\nformat = "json"\n'

    async with AsyncExitStack() as stack:

        def start(name: str, module: str, router: str = "", *options: str) -> RouterProcess:
            own = folder / name
            own.mkdir()
            process = router_process(own, toml(router), *options, module=module)
            return stack.enter_context(process)

        listen = (f"load_monitor.listen={monitor}", "load_monitor.metrics_listen=")
        options = [word for each in listen for word in ("--set", each)]
        start("monitor", "services.load_monitor", "", *options)
        trainer_process = start("trainer", trainer_module or "services.trainer")
        processes = [
            start(name, "services.router_inference", router) for name, router in routers.items()
        ]
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(trainer))
        stub = trainer_grpc.TrainerServiceStub(channel)
        yield MeshProcesses(monitor, trainer_process, stub, processes)
