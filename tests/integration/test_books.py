"""A mesh's books: a real router's counts and records, minutes of a monitor, hindsight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from services.common.log import get_logger
from services.common.mesh_settings import MeshSettings, load_mesh_files
from services.common.settings import load_settings
from services.common.state.experience_stream import RedisExperienceStream
from services.common.state.minute_store import RedisMinuteStore
from services.common.state.redis_connection import RedisConnection
from services.load_monitor.books import MinuteBooks
from services.report.facts import report_facts
from services.trainer.app import mesh_spec
from services.trainer.hindsight import HindsightKeeper
from services.trainer.mesh_view import MeshView
from services.trainer.metrics import TrainerMetrics
from services.trainer.settings import Settings
from tests.conftest import RedisServer
from tests.fakes.clock import FakeClock
from tests.fakes.router_process import mesh_toml, running_router
from tests.fakes.triton import FakeTriton, Script
from tests.integration.test_load_monitor import serving
from tests.integration.test_targets import write_monitor
from tests.waiting import LIMIT_S, until
from tiercel import AsyncClient
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from trainer.evaluation.past import LookBack, PastRequest

LOG = get_logger("test")


class Reckoner:
    """Takes the place of the worker that simulates: every request could have earned 1."""

    def __init__(self) -> None:
        self.requests: list[PastRequest] = []

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> LookBack:
        """Notes the requests."""
        self.requests = arguments[2]
        return LookBack({"copa": float(len(self.requests))}, ((1, 0.5), (2, 0.9)))


async def _rest() -> None:
    """Keeps no books."""


async def test_requests_of_a_real_router_come_to_the_report(
    tmp_path: Path,
    free_port: Callable[[], int],
    redis_server: RedisServer,
    redis_connection: RedisConnection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counts by way of the monitor, records by way of Redis; both meet in the monitor's answer."""
    port, reckoner = free_port(), Reckoner()
    triton = await FakeTriton(default=Script(tokens=("a", "b"), step_s=0.001)).start()
    toml = mesh_toml(
        [("e0", triton.address)],
        monitor=f"127.0.0.1:{port}",
        redis_url=redis_server.url,
        deadline_s=LIMIT_S,
    )
    path = write_monitor(tmp_path, toml, port)
    store = RedisMinuteStore(redis_connection)
    try:
        async with (
            serving(path) as served,
            running_router(tmp_path, toml) as router,
            AsyncClient(router.address) as client,
        ):
            # The books below are kept in the place of the monitor's own, which go by wall clock:
            # of a minute that ends meanwhile both would keep what is in it.
            monkeypatch.setattr(served.app._books, "look", _rest)
            left_s = 60.0 - time.time() % 60.0
            if left_s < 5.0:
                # All requests must lie in one minute, as routers see the time.
                await asyncio.sleep(left_s)
            minute_s = int(time.time() // 60) * 60
            clock = FakeClock(wall_ns=(minute_s - 30) * 10**9)
            keeper = hindsight_keeper(path, clock, redis_connection, reckoner)
            await keeper.look()  # what comes from now on is its own
            books = MinuteBooks(
                store=store,
                broadcast=served.app._broadcast,
                coordinator=served.app._coordinator,
                clock=clock,
                log=LOG,
            )
            for _ in range(3):
                await client.generate("hi there", task="copa")
            hopeless = pb2.GenerationSpec(prompt="hi there", task="copa")
            hopeless.deadline.FromMilliseconds(1)
            with pytest.raises(grpc.aio.AioRpcError):
                # Refused by admission: it is counted, and leaves no record.
                await router.stub.Generate(pb2.GenerateRequest(spec=hopeless), timeout=LIMIT_S)

            async def is_told() -> bool:
                state = (await served.stub.GetSystemState(pb.GetSystemStateRequest())).state
                told = [task for each in state.routers for task in each.task_outcomes]
                ended: int = sum(each.on_time_count + each.refused_count for each in told)
                return ended == 4

            await until(is_told, "the monitor has heard of all")
            await until(lambda: router.core.experience.waiting_count == 0, "records are written")
            # That minute passes.
            for seconds in (31.0, 1.0, 60.0, 20.0):
                clock.move(seconds)
                await books.look()
                await keeper.look()
            reply = await served.stub.ListMinutes(pb.ListMinutesRequest())
    finally:
        await triton.stop()
    for request in reckoner.requests:
        assert (request.task, request.output_tokens) == ("copa", 2)
        assert request.slack_s == pytest.approx(LIMIT_S, abs=5.0)
        assert abs(request.arrival_s - time.time()) < 60.0
    facts = report_facts(reply.minutes, 0.0, 1.0)
    copa = facts["tasks"]["copa"]
    assert (copa["on_time"], copa["refused"], copa["in_time"]) == (3, 1, 0.75)
    assert copa["quality"] == pytest.approx(sum(r.reward for r in reckoner.requests) / 4, abs=1e-4)
    # The one that was refused could have had all, for all that is known.
    assert copa["regret"] == pytest.approx(1.0 - copa["quality"], abs=1e-4)
    assert facts["devices"]["mesh"] == 1.0
    assert facts["hindsight"]["minutes"] == 1


def hindsight_keeper(
    path: Path, clock: FakeClock, connection: RedisConnection, reckoner: Reckoner
) -> HindsightKeeper:
    """A trainer's, with the mesh's own settings."""
    mesh: MeshSettings = load_settings(Settings, path=path, environ={}).mesh
    files = load_mesh_files(mesh)
    return HindsightKeeper(
        stream=RedisExperienceStream(connection),
        store=RedisMinuteStore(connection),
        reckoner=reckoner,
        spec=mesh_spec(mesh, files),
        mesh=MeshView(channel=None, candidates=(), clock=clock, log=LOG),
        tasks=frozenset(task.name for task in files.catalog.tasks),
        most_requests=100,
        timeout_s=9.0,
        clock=clock,
        log=LOG,
        metrics=TrainerMetrics(CollectorRegistry()),
    )
