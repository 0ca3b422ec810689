"""The mesh of the fault matrix: real processes, with handles to hurt each of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import os
import signal
import tomllib
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Self

import grpc.aio
import httpx
import psutil
import redis.asyncio
import tomli_w
from redis.exceptions import RedisError

from services.common.channels import open_channel
from services.common.state import keys
from services.local.child import Child, ChildSpec
from services.local.embedded import EmbeddedMesh
from services.local.envoy import envoy_config
from services.local.errors import CommandError
from services.local.paced_mesh import paced_options
from services.local.probes import http_ok
from services.local.processes import STAGE_MONITOR, Processes
from tests.faults.case import Start
from tests.faults.doors import Door, EnvoyDoor, KServeDoor, OpenAiDoor
from tests.faults.load import Load, settle
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as monitor_grpc
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as router_grpc
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb
from tiercel.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from trainer.shipped import POLICIES, PROFILES, QUALITY, shipped

NAME = "faults"
GROUP = "trainer"
"""The trainer's consumer group."""
ROUTERS = 2
TASKS = ("piqa", "copa")
_SECTIONS: Mapping[str, Mapping[str, Any]] = {
    # The trainer takes all experience in, saves and acknowledges it, and never learns from it.
    # Stops as a router does whose settings do not say otherwise.
    "router_inference": {"features_always": True, "lame_duck_s": 1.0},
    "trainer": {
        "autostart_online": True,
        "min_transitions": 10_000_000,
        "save_interval_s": 1.0,
        "worker_nice": 0,
    },
}
LEARNING_LIMIT_S = 90.0
_PICKERS = "cluster.pickers.membership_healthy"
CALL_S = 2.0
"""Longest time of a question of ours to a service."""


@dataclasses.dataclass(frozen=True)
class _Processes(Processes):
    """Processes with environment variables of their own.

    Attributes:
        variables: Those of each process.
        behind_envoy: Addresses that Envoy has in the place of its own, by cluster.
    """

    variables: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    behind_envoy: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def redis(self) -> ChildSpec:
        return self._with_variables(super().redis())

    def triton(self, repository: Any) -> ChildSpec:
        return self._with_variables(super().triton(repository))

    def envoy(self, router_count: int, model: str) -> ChildSpec:
        spec = super().envoy(router_count, model)
        if self.behind_envoy:
            text = envoy_config(
                listen=self.address("envoy"),
                admin=self.address("envoy_admin"),
                model=model,
                **self.behind_envoy,
            )
            (self.folder / "envoy.yaml").write_text(text, encoding="utf-8")
        return spec

    def service(self, *arguments: Any, **named: Any) -> ChildSpec:
        return self._with_variables(super().service(*arguments, **named))

    def _with_variables(self, spec: ChildSpec) -> ChildSpec:
        own = self.variables.get(spec.name, {})
        return dataclasses.replace(spec, variables={**spec.variables, **own})


class FaultMesh(EmbeddedMesh):
    """Redis, Triton with paced tiers, monitor, trainer and two routers.

    Processes have the names of `tiercel up`: ``redis``, ``triton``, ``load-monitor``, ``trainer``,
    ``router-inference-0`` and ``-1``; where doors stand before them, ``openai-door`` and ``envoy``.
    """

    def __init__(self, start: Start, *, say: Callable[[str], None]) -> None:
        """Starts nothing yet."""
        options = paced_options(
            NAME,
            shipped(PROFILES, "opt-a100.toml"),
            quality=shipped(QUALITY, "opt.toml"),
            device_count=start.device_count,
            time_scale=start.time_scale,
        )
        sections = {
            name: {**_SECTIONS.get(name, {}), **start.sections.get(name, {})}
            for name in {**_SECTIONS, **start.sections}
        }
        options = dataclasses.replace(
            options,
            router_count=ROUTERS,
            sections=sections,
            fresh=True,
            openai_door=start.doors,
            envoy=start.doors and has_envoy(),
        )
        super().__init__(options, say=say)
        self._start = start
        self.behind_envoy: dict[str, list[str]] = {}
        self._processes = _Processes(
            self.folder, self._processes.ports, self.layout, start.variables, self.behind_envoy
        )
        self._stack = contextlib.AsyncExitStack()
        self._loads: list[Load] = []
        self.deadline_s = 2.0
        self.door: Door | None = None
        self.load_addresses = list(self.router_addresses)
        self.added_address = self.addresses["triton_grpc"]
        self.redis_client = redis.asyncio.Redis.from_url(
            f"redis://{self.addresses['redis']}/0", socket_timeout=1.0, socket_connect_timeout=1.0
        )

    async def __aenter__(self) -> Self:
        """Starts everything; returns once the mesh is whole."""
        await super().__aenter__()
        try:
            if self._start.beneath is not None:
                await self._stack.enter_async_context(self._start.beneath(self))
            await self.start_backends()
            if self._start.around is not None:
                await self._stack.enter_async_context(self._start.around(self))
            await self.start_services()
            self._channels = {
                name: open_channel(address) for name, address in self._service_addresses().items()
            }
            if self._start.has_additions:
                await self._add()
            if not await settle(self._is_learning, LEARNING_LIMIT_S):
                raise CommandError("the trainer takes no experience in")
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends everything."""
        for channel in self._channels.values():
            await channel.close()
        await self._end()

    async def _add(self) -> None:
        """Gives the mesh what only Redis remembers: a policy and an endpoint."""
        snapshot = shipped(POLICIES, "opt-a100.safetensors").read_bytes()
        await self.trainer_call("PublishPolicy", trainer_pb.PublishPolicyRequest(snapshot=snapshot))
        tier = common_pb2.ServedTier(tier="small", model_name="gpu0_small")
        added = common_pb2.Endpoint(
            endpoint="added",
            address=self.added_address,
            device="gpu0",
            tiers=[tier],
        )
        await self.monitor_call("AddEndpoint", monitor_pb.AddEndpointRequest(endpoint=added))

    async def _is_learning(self) -> bool:
        """Says whether the trainer has asked for experience."""
        return await self.consumer_group() is not None

    async def consumer_group(self) -> dict[str, Any] | None:
        """Returns what Redis knows of the trainer's group; None if it tells of none."""
        try:
            groups = await self.redis_client.xinfo_groups(keys.EXPERIENCE_STREAM)
        except RedisError:
            return None
        return next((group for group in groups if group["name"] == GROUP.encode()), None)

    async def _end(self) -> None:
        await self.redis_client.aclose()
        for name in self._supervisor.children:  # what is stopped cannot end
            self.thaw(name)
        await asyncio.shield(self.stop())
        await self._stack.aclose()

    def write_settings(self) -> None:
        """Writes the settings file, changed as the start asks."""
        super().write_settings()
        if self._start.settings is not None:
            document = tomllib.loads(self._processes.config_path.read_text(encoding="utf-8"))
            self._start.settings(self, document)
            self._processes.config_path.write_text(tomli_w.dumps(document), encoding="utf-8")

    # What faults are made of.

    def process(self, name: str) -> psutil.Process:
        """Returns a process by name; for Triton the server itself, not what watches it."""
        child = psutil.Process(self._supervisor.children[name].pid)
        if name != "triton":
            return child
        return next(p for p in child.children(recursive=True) if p.name() == "tritonserver")

    def family(self, name: str) -> list[psutil.Process]:
        """Returns a process and all below it."""
        try:
            process = psutil.Process(self._supervisor.children[name].pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self, name: str) -> None:
        """Kills a process (SIGKILL)."""
        self.process(name).kill()

    def freeze(self, name: str) -> None:
        """Stops a process and all below it (SIGSTOP)."""
        for process in self.family(name):
            process.suspend()

    def thaw(self, name: str) -> None:
        """Lets them go on (SIGCONT)."""
        for process in self.family(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a process a signal."""
        self.process(name).send_signal(number)

    @contextlib.asynccontextmanager
    async def another(self, section: str, name: str, **variables: str) -> AsyncIterator[Child]:
        """Runs one more process of a service, with the same settings and ports of its own."""
        ports = {key: self._claims.any_free() for key in (name, f"{name}_metrics")}
        processes = _Processes(
            self.folder, {**self._processes.ports, **ports}, self.layout, {name: variables}
        )
        child = Child(processes.service(section, STAGE_MONITOR, name=name, port=name))
        try:
            await child.start()
            yield child
        finally:
            await child.stop()

    def open_door(self, kind: str) -> Door:
        """Returns a way to ask at one of the doors."""
        if kind == "kserve":
            return KServeDoor(self.load_addresses)
        if kind == "openai":
            return OpenAiDoor(self.addresses["openai_door"])
        return EnvoyDoor(self.addresses["envoy"])

    async def load(self, rate_rps: float, duration_s: float, **fields: Any) -> Load:
        """Offers load beside the steady one; its requests are accounted for with the others."""
        load = self.new_load(rate_rps, duration_s, **fields)
        self._loads.append(load)
        await load.run()
        return load

    def new_load(self, rate_rps: float, duration_s: float, **fields: Any) -> Load:
        """Prepares load on all routers, or through the door of the case."""
        fields = {"deadline_s": self.deadline_s, **fields}
        return Load(
            self.door,
            router_addresses=self.load_addresses,
            phases=[{"name": "load", "duration_s": duration_s, "rate_rps": rate_rps}],
            task_mix=dict.fromkeys(TASKS, 1.0),
            nice=0,
            **fields,
        )

    def take_loads(self) -> list[Load]:
        """Returns the loads that a fault offered, and forgets them."""
        loads, self._loads = self._loads, []
        return loads

    # What the mesh says of itself.

    def starts(self) -> dict[str, int]:
        """How often each process was started."""
        return {name: child.start_count for name, child in self._supervisor.children.items()}

    async def router_status(self, name: str) -> router_pb.GetRouterStatusResponse:
        """Asks a router for its status."""
        stub: Any = router_grpc.RouterInferenceServiceStub(self._channels[name])
        status: router_pb.GetRouterStatusResponse = await stub.GetRouterStatus(
            router_pb.GetRouterStatusRequest(), timeout=CALL_S
        )
        return status

    async def system_state(self) -> Any:
        """Asks the monitor for the state."""
        stub: Any = monitor_grpc.LoadMonitorServiceStub(self._channels["load-monitor"])
        request = monitor_pb.GetSystemStateRequest()
        return (await stub.GetSystemState(request, timeout=CALL_S)).state

    async def monitor_call(self, method: str, request: Any) -> Any:
        """Calls the monitor."""
        stub: Any = monitor_grpc.LoadMonitorServiceStub(self._channels["load-monitor"])
        return await getattr(stub, method)(request, timeout=CALL_S)

    async def trainer_call(self, method: str, request: Any) -> Any:
        """Calls the trainer."""
        stub: Any = trainer_grpc.TrainerServiceStub(self._channels["trainer"])
        return await getattr(stub, method)(request, timeout=CALL_S)

    async def what_is_missing(self) -> str:
        """Says what the mesh lacks to be whole; empty if it is."""
        for name, child in self._supervisor.children.items():
            if not child.is_running:
                return f"{name} does not run"
        try:
            await self.redis_client.ping()
            await self.trainer_call("ListPolicies", trainer_pb.ListPoliciesRequest())
            await self.system_state()
            if self._start.doors and (missing := await self._what_doors_miss()):
                return missing
            for name in self.router_names:
                status = await self.router_status(name)
                if status.degraded_reasons or status.fallback_active:
                    return f"{name}: {', '.join(status.degraded_reasons) or 'fallback'}"
                # One that is probed may be chosen; whether it is, is the policy's affair.
                lost = [
                    each
                    for each in status.candidates
                    if not each.usable and not each.reason.startswith("probing")
                ]
                if lost:
                    return f"{name}: {lost[0].candidate.endpoint}: {lost[0].reason}"
        except (RedisError, OSError) as error:
            return f"redis: {error}"
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        return ""

    async def _what_doors_miss(self) -> str:
        if not await http_ok(self.addresses["openai_door"], "/health"):
            return "openai-door reaches no router"
        if not self.options.envoy:
            return ""
        if isinstance(self.door, EnvoyDoor) and self.door.goes_without:
            return "envoy goes on without a router"
        url = f"http://{self._processes.address('envoy_admin')}/stats?filter={_PICKERS}"
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=CALL_S) as client:
                found = (await client.get(url)).text.split()
        except httpx.HTTPError as error:
            return f"envoy: {error!r}"
        return "" if found[-1:] == [str(ROUTERS)] else f"envoy: {' '.join(found)}"

    @property
    def endpoint_names(self) -> list[str]:
        """Names of the endpoints; known once the backends run."""
        assert self._repository is not None
        return [entry["name"] for entry in self._repository.endpoints("")]

    @property
    def picker_addresses(self) -> list[str]:
        """Where Envoy asks the routers."""
        return [self._processes.address(f"picker{index or ''}") for index in range(ROUTERS)]

    @property
    def router_names(self) -> list[str]:
        """Names of the routers."""
        return [f"router-inference-{index}" for index in range(ROUTERS)]

    def metrics_address(self, name: str) -> str:
        """Prometheus address of a router, ``load_monitor`` or ``trainer``."""
        return self.manifest().metrics[name]

    def _service_addresses(self) -> dict[str, str]:
        return {
            **dict(zip(self.router_names, self.router_addresses, strict=True)),
            "load-monitor": self.addresses["load_monitor"],
            "trainer": self.addresses["trainer"],
        }


def has_envoy() -> bool:
    """Says whether Envoy is installed."""
    return importlib.util.find_spec("envoy") is not None


def run_root(folder: os.PathLike[str]) -> None:
    """Puts the files of meshes under a folder."""
    os.environ["TIERCEL_STATE"] = os.fspath(folder)
