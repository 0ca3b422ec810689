"""One policy's run on a live mesh: switched to in place, loaded, and watched meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import httpx
import psutil

from services.common.channels import open_channel
from services.live.cpu import busy_share, ended_children_cpu_s, tree_cpu_s
from services.loadgen.process import run_load
from services.loadgen.records import RunRecords
from services.loadgen.spec import LoadSpec
from services.local.calls import explain
from services.local.embedded import EmbeddedMesh
from services.local.errors import CommandError
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

CALL_TIMEOUT_S = 10.0
LOOK_S = 2.0
"""Time between two looks at the routers' event loops; each costs a router some milliseconds."""
_LOOP_LAG = "tiercel_loop_lag_seconds "
_GENERATOR = "load generator"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one run brought.

    Attributes:
        records: A row per request.
        took_s: How long it took, its last answers included.
        cores: Mean number of cores used while requests were sent, by process; that of the load
            generator over all of its life.
        machine_busy: Share of the machine's CPU time that was not idle meanwhile, whoever used it.
        loop_lag_s: Latest that a router's event loop was seen to be, seconds.
    """

    records: RunRecords
    took_s: float
    cores: Mapping[str, float]
    machine_busy: float
    loop_lag_s: float


async def run_policy(mesh: EmbeddedMesh, policy: str, spec: LoadSpec) -> Measured:
    """Has fresh routers decide by a policy, and sends one run's requests.

    The pressure of a target that one policy missed lasts twenty deadlines, and the next would pay
    for it. A simulated run begins with routers that know nothing, too.

    Raises:
        CommandError: A router did not take the policy, or a process of the mesh has ended.
        LoadProcessError: The load generator failed.
    """
    await mesh.restart_routers()
    await asyncio.gather(*(_use(address, policy) for address in mesh.router_addresses))
    started = {name: each["start_count"] for name, each in mesh.manifest().processes.items()}
    began = _look(mesh)
    sending = Sending(lambda: _look(mesh))
    lags = _LoopLags(mesh)
    watching = asyncio.create_task(lags.watch())
    try:
        with tempfile.TemporaryDirectory(prefix="tiercel-live-") as folder:
            out = pathlib.Path(folder) / "run.npz"
            records = await run_load(spec, out, on_progress=sending.note)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    ended = _look(mesh)
    for name, each in mesh.manifest().processes.items():
        if each["start_count"] != started[name]:
            raise CommandError(f"{name} was started again during the run; see {each['log']}")
    first, last = sending.ends or (began, ended)
    cores = {name: value for name, value in last.cores(first).items() if name != _GENERATOR}
    cores[_GENERATOR] = ended.cores(began)[_GENERATOR]
    busy = busy_share(first.machine, last.machine)
    return Measured(records, ended.at_s - began.at_s, cores, busy, lags.most_s)


@dataclasses.dataclass(frozen=True)
class Look:
    """What was used by a moment.

    Attributes:
        at_s: When, monotonic seconds.
        cpu_s: CPU seconds by process.
        machine: Times of all processors.
    """

    at_s: float
    cpu_s: Mapping[str, float]
    machine: Any

    def cores(self, before: Look) -> dict[str, float]:
        """Returns the mean number of cores that each process used since an earlier look."""
        past_s = self.at_s - before.at_s
        return {name: (cpu_s - before.cpu_s[name]) / past_s for name, cpu_s in self.cpu_s.items()}


class Sending:
    """Looks when the load generator sends its first request and when it has sent its last one.

    Its start and the wait for late answers take seconds, in which the mesh has little to do.
    """

    def __init__(self, look: Callable[[], Look]) -> None:
        """Takes how to look."""
        self._look = look
        self._first: Look | None = None
        self._last: Look | None = None

    def note(self, event: Mapping[str, Any]) -> None:
        """Takes the generator's counts."""
        if self._first is None:
            self._first = self._look()
        elif self._last is None and event["offered"] >= event["planned"]:
            self._last = self._look()

    @property
    def ends(self) -> tuple[Look, Look] | None:
        """Both looks; None if they were too near for that."""
        return (self._first, self._last) if self._first and self._last else None


def _look(mesh: EmbeddedMesh) -> Look:
    return Look(time.monotonic(), _cpu_s(mesh), psutil.cpu_times())


def _cpu_s(mesh: EmbeddedMesh) -> dict[str, float]:
    """CPU seconds so far of every process of the mesh, and of load generators that have ended."""
    try:
        found = {
            name: tree_cpu_s(int(each["pid"])) for name, each in mesh.manifest().processes.items()
        }
    except psutil.NoSuchProcess as error:
        raise CommandError(f"a process of the mesh has ended: {error}") from None
    return found | {_GENERATOR: ended_children_cpu_s()}


async def _use(address: str, policy: str) -> None:
    """Switches one router, and waits until the load monitor has told it of the mesh."""
    try:
        async with open_channel(address) as channel:
            stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)
            await stub.UsePolicy(pb2.UsePolicyRequest(policy=policy), timeout=CALL_TIMEOUT_S)
            for _ in range(300):
                request = pb2.GetRouterStatusRequest()
                status = await stub.GetRouterStatus(request, timeout=CALL_TIMEOUT_S)
                if status.policy != policy or status.fallback_active:
                    raise CommandError(f"{address} uses {status.policy}, not {policy}")
                if status.HasField("state_age"):
                    return
                await asyncio.sleep(0.1)
    except grpc.aio.AioRpcError as error:
        raise explain("router", address, error) from None
    raise CommandError(f"{address}: the load monitor has told it nothing within 30 s")


class _LoopLags:
    """Looks at the gauge of every router in turns; one that does not answer is passed over."""

    def __init__(self, mesh: EmbeddedMesh) -> None:
        metrics = mesh.manifest().metrics
        self._addresses = [
            address for name, address in metrics.items() if name.startswith("router-inference")
        ]
        self.most_s = 0.0

    async def watch(self) -> None:
        """Looks until cancelled."""
        # Nothing is encrypted; the default would load every root certificate.
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=LOOK_S) as client:  # noqa: S501
            while True:
                for address in self._addresses:
                    with contextlib.suppress(httpx.HTTPError):
                        reply = await client.get(f"http://{address}/metrics")
                        self.most_s = max(self.most_s, loop_lag_s(reply.text))
                await asyncio.sleep(LOOK_S)


def loop_lag_s(page: str) -> float:
    """Returns the loop's lag as a router's metrics tell it, seconds; 0 if they do not."""
    lines = [line for line in page.splitlines() if line.startswith(_LOOP_LAG)]
    return float(lines[0].removeprefix(_LOOP_LAG)) if lines else 0.0
