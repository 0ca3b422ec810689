"""Workers of one router are killed at random moments under load; nothing of them may stay behind.

python -m tests.bench.worker_kills [--kills 200] [--workers 2]

A second after kills, router and load monitor may count no more requests than are under way, and no
caller may wait for longer than a broken connection and a successor's start cost. At the end nothing
is counted any more, and every request offered has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import psutil

from tests.fakes.monitor import running_monitor
from tests.fakes.ports import free_port
from tests.fakes.router_process import RouterProcess, mesh_toml, router_process
from tests.fakes.triton import FakeTriton, Script
from tests.waiting import LIMIT_S, until
from tiercel import AsyncClient, UnavailableError
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as monitor_grpc
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

CALLERS = 16
SETTLED_S = 1.0
"""After this long a kill may have left no load behind."""
_SCRIPT = Script(tokens=("a",) * 4, step_s=0.01)
_CALL_S = 20.0
_PAUSE_S = 0.1
"""What a caller waits after a broken connection."""
_KILL_EVERY_S = 0.05, 0.55


@dataclasses.dataclass
class Findings:
    """What was seen.

    Attributes:
        answers: Requests answered.
        broken: Calls that ended with a broken connection.
        others: Calls that ended in any other way.
        longest_s: Longest time of a call, seconds.
        kills: Workers killed.
        most_at_router: Most requests on candidates, by the router's own account, a second and more
            after a kill and before the next one.
        most_at_monitor: The same as the monitor sees it.
        went_down: How often the monitor's count of offered requests went down.
        routers: Names of routers that the monitor has seen.
        left: Requests still counted somewhere once all calls had ended.
        unended: Requests offered that no end was counted for, after all calls had ended.
    """

    answers: int = 0
    broken: int = 0
    others: list[str] = dataclasses.field(default_factory=list)
    longest_s: float = 0.0
    kills: int = 0
    most_at_router: int = 0
    most_at_monitor: int = 0
    went_down: int = 0
    routers: set[str] = dataclasses.field(default_factory=set)
    left: int = 0
    unended: int = 0


class Watch:
    """Reads a router's and a monitor's account of one router."""

    def __init__(
        self, router: grpc.aio.Channel, monitor: grpc.aio.Channel, found: Findings
    ) -> None:
        """Takes channels to both and where to note what is seen."""
        self._router: Any = pb2_grpc.RouterInferenceServiceStub(router)
        self._monitor: Any = monitor_grpc.LoadMonitorServiceStub(monitor)
        self._found = found
        self._offered = 0
        self.unended = 0

    async def at_router(self) -> int:
        """Returns the requests on candidates by whichever worker answers."""
        while True:
            try:
                status = await self._router.GetRouterStatus(
                    pb2.GetRouterStatusRequest(), timeout=_CALL_S
                )
            except grpc.aio.AioRpcError:
                continue  # its worker was killed
            return sum(each.own_in_flight_count for each in status.candidates)

    async def at_monitor(self) -> int:
        """Returns the requests on candidates as reported last, and follows the counts."""
        request = monitor_pb2.GetSystemStateRequest()
        state = (await self._monitor.GetSystemState(request, timeout=_CALL_S)).state
        total = 0
        for router in state.routers:
            self._found.routers.add(router.router_id)
            counts = router.outcomes
            self._found.went_down += counts.offered_count < self._offered
            self._offered = counts.offered_count
            ended = counts.on_time_count + counts.late_count + counts.refused_count
            ended += counts.cancelled_count + counts.failed_count
            self.unended = counts.offered_count - ended
            total += sum(load.in_flight_count for load in router.loads)
        return total


@asynccontextmanager
async def mesh(folder: Path, workers: int) -> AsyncIterator[tuple[RouterProcess, str]]:
    """Runs a monitor, a router of several workers and one endpoint; yields router and monitor."""
    triton = await FakeTriton(default=_SCRIPT).start()
    monitor = f"127.0.0.1:{free_port()}"
    own = f'workers = {workers}\ncompiled = false\nrouter_id = "r"\npolicy = "static-small"'
    toml = mesh_toml([("e0", triton.address)], monitor=monitor, router=own, deadline_s=_CALL_S)
    async with running_monitor(folder, toml, monitor):
        with router_process(folder, toml) as router:
            yield router, monitor
    await triton.stop()


async def measure(folder: Path, *, kills: int, workers: int = 2, seed: int = 1) -> Findings:
    """Kills workers under load and returns what was seen."""
    found, rng, stop = Findings(), random.Random(seed), asyncio.Event()

    async def call(client: AsyncClient) -> None:
        while not stop.is_set():
            began_s = time.monotonic()
            try:
                await client.generate("hi", task="piqa", deadline_s=_CALL_S)
                found.answers += 1
            except UnavailableError:
                found.broken += 1
                await asyncio.sleep(_PAUSE_S)
            except Exception as error:
                found.others.append(repr(error))
            found.longest_s = max(found.longest_s, time.monotonic() - began_s)

    async with AsyncExitStack() as stack:
        router, monitor = await stack.enter_async_context(mesh(folder, workers))
        to_router, to_monitor = map(grpc.aio.insecure_channel, (router.address, monitor))
        await stack.enter_async_context(to_router)
        await stack.enter_async_context(to_monitor)
        watch = Watch(to_router, to_monitor, found)
        client = await stack.enter_async_context(AsyncClient(router.address, connections=8))
        calls = [asyncio.ensure_future(call(client)) for _ in range(CALLERS)]
        parent = psutil.Process(router.process.pid)
        for _ in range(kills):
            await asyncio.sleep(rng.uniform(*_KILL_EVERY_S))
            victims = await until(parent.children, "a worker lives")
            os.kill(rng.choice(victims).pid, signal.SIGKILL)
            found.kills += 1
            if rng.random() < 0.2:
                await asyncio.sleep(SETTLED_S)
                found.most_at_router = max(found.most_at_router, await watch.at_router())
                found.most_at_monitor = max(found.most_at_monitor, await watch.at_monitor())
        stop.set()
        await asyncio.gather(*calls)
        await asyncio.sleep(SETTLED_S)
        give_up_s = time.monotonic() + LIMIT_S
        while True:
            found.left = await watch.at_router() + await watch.at_monitor()
            found.unended = watch.unended
            is_clear = found.routers and not (found.left or found.unended)
            if is_clear or time.monotonic() > give_up_s:
                break
            await asyncio.sleep(_PAUSE_S)
    return found


def main() -> None:
    """Runs it and prints what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = measure(Path(folder), kills=given.kills, workers=given.workers, seed=given.seed)
        found = asyncio.run(work)
    for name, value in dataclasses.asdict(found).items():
        print(f"{name:<16} {value}")


if __name__ == "__main__":
    main()
