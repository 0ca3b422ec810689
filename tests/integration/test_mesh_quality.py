"""What clients say of answers is learned by the whole mesh, and outlives its processes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio

from tests.conftest import RedisServer
from tests.fakes.router_process import RouterProcess, mesh_toml, router_process
from tests.fakes.triton import FakeTriton, Script
from tests.integration.test_load_monitor import serving
from tests.integration.test_targets import write_monitor
from tests.waiting import LIMIT_S, until
from tiercel import AsyncClient
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb_grpc

LEARNS = "learn_quality = true\ncompiled = false"


async def rate(router: RouterProcess, count: int, score: float) -> None:
    """Has a router answer so many requests by its small tier, and rates each answer."""
    async with AsyncClient(router.address, connections=4) as client:
        for _ in range(count):
            answer = await client.generate("hi", task="copa", tier="small", deadline_s=20.0)
            await client.report_outcome(request_id=answer.request_id, quality=score)


async def heard(router: RouterProcess) -> set[int]:
    """Returns how many ratings of its small tier the workers of a router go by."""
    found = set()
    for _ in range(4):
        # Each over a connection of its own, which the kernel spreads over the workers.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(router.address, options=options) as channel:
            stub: Any = pb_grpc.RouterInferenceServiceStub(channel)
            status = await stub.GetRouterStatus(pb.GetRouterStatusRequest(), timeout=LIMIT_S)
            told = {(each.task, each.tier): each for each in status.tier_qualities}
            found.add(told["copa", "small"].report_count if ("copa", "small") in told else 0)
    return found


@contextlib.asynccontextmanager
async def tier() -> AsyncIterator[FakeTriton]:
    """Runs a server of all tiers."""
    triton = await FakeTriton(default=Script(tokens=("a",), step_s=0.001)).start()
    try:
        yield triton
    finally:
        await triton.stop()


async def test_routers_learn_from_what_was_said_to_any_of_them(
    tmp_path: Path, redis_server: RedisServer, free_port: Callable[[], int]
) -> None:
    """Also those that start after all others have left, under a monitor that starts anew."""
    port = free_port()
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        folder.mkdir()
    async with tier() as triton:
        toml = mesh_toml(
            [("e0", triton.address)],
            monitor=f"127.0.0.1:{port}",
            redis_url=redis_server.url,
            router=LEARNS,
        )
        path = write_monitor(tmp_path, toml, port)
        async with serving(path) as served:
            with (
                router_process(folders[0], f"{toml}workers = 2\n") as one,
                router_process(folders[1], toml) as two,
            ):
                await served.wait_for(lambda state: len(state.routers) == 2)
                await rate(one, 12, 0.0)
                await rate(two, 8, 1.0)

                async def all_heard() -> bool:
                    return await heard(one) | await heard(two) == {20}

                await until(all_heard, "every process knows what any of them was told")
                state = await served.state()
                ((told,),) = [task.tiers for task in state.task_ratings]
                assert (told.rating_count, round(told.mean, 6)) == (20, 0.4)
        async with serving(path) as served:
            with router_process(folders[2], toml) as three:

                async def is_known() -> bool:
                    return await heard(three) == {20}

                await until(is_known, "a router that starts knows it too")
                await rate(three, 1, 0.0)
                await served.wait_for(
                    lambda state: (
                        [t.rating_count for k in state.task_ratings for t in k.tiers] == [21]
                    )
                )
