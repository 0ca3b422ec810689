"""An embedded mesh: Redis, Triton, load monitor, trainer and routers as child processes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any, Self

from services.common.mesh_settings import EndpointSettings, TaskSettings
from services.local.child import ChildError
from services.local.cores import CoreLayout, machine_layout
from services.local.errors import CommandError
from services.local.fleets import Fleet
from services.local.manifest import FILE_NAME, Manifest, find_mesh, run_folder, started_ticks
from services.local.ports import PortClaims
from services.local.processes import (
    STAGE_DOORS,
    STAGE_MONITOR,
    STAGE_TRAINER,
    Processes,
    wanted_ports,
)
from services.local.settings_file import settings_text
from services.local.supervisor import Supervisor, heard_or_not, kill_descendants
from services.local.triton.errors import TritonServerError
from services.local.triton.repository.layout import ServerRepository

TRITON_FOLDER = "triton"
"""Where in a mesh's folder its model repository lies."""


@dataclasses.dataclass(frozen=True)
class MeshOptions:
    """What to start.

    Attributes:
        name: Name of the mesh; its files lie in ``run/NAME`` in the state folder.
        router_count: Router processes, each with its own port.
        fleet: Reference tiers, or a paced fleet.
        profile: Latency profile the services start with.
        quality: Quality table the services start with.
        tasks: Classes of requests.
        policy: Policy the routers start with.
        trainer: Whether a trainer is started.
        openai_door: Whether an OpenAI-shaped door is started.
        envoy: Whether an Envoy is started that asks the routers.
        sections: Further keys per settings section, for instance ``router_inference``.
        fresh: Whether files of an earlier mesh of the name, its policies included, are deleted.
    """

    name: str
    fleet: Fleet
    profile: pathlib.Path
    quality: pathlib.Path
    tasks: tuple[TaskSettings, ...]
    router_count: int = 1
    policy: str = "price"
    trainer: bool = True
    openai_door: bool = False
    envoy: bool = False
    sections: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    fresh: bool = False


class EmbeddedMesh:
    """Starts the mesh on ``async with``; after the block no process of it is left.

    ``start_backends`` and ``start_services`` may be called apart, so that the tiers can be measured
    before the services read what was measured.
    """

    def __init__(
        self,
        options: MeshOptions,
        *,
        say: Callable[[str], None],
        layout: CoreLayout | None = None,
    ) -> None:
        """Starts nothing yet.

        Raises:
            CommandError: A mesh of this name runs already.
        """
        self.options = options
        self.layout = layout or machine_layout()
        self.folder = run_folder(options.name).absolute()
        _refuse_second(self.folder, options.name)
        self._say = heard_or_not(say)
        self._supervisor = Supervisor(say=self._say, changed=self._write_manifest)
        self._owner = os.getpid()
        self._claims = PortClaims()
        self._held: IO[bytes] | None = None
        ports = self._claims.choose(wanted_ports(options.router_count))
        self._processes = Processes(self.folder, ports, self.layout)
        self._repository: ServerRepository | None = None
        self.profile, self.quality, self.tasks = options.profile, options.quality, options.tasks

    @property
    def router_addresses(self) -> tuple[str, ...]:
        """Addresses of the routers (gRPC)."""
        count = self.options.router_count
        return tuple(self._processes.address(f"router{index or ''}") for index in range(count))

    @property
    def addresses(self) -> dict[str, str]:
        """Addresses of everything but the routers, by what listens there."""
        names = ["redis", "triton_grpc", "triton_http", "triton_metrics", "load_monitor"]
        names += ["trainer"] if self.options.trainer else []
        names += ["openai_door"] if self.options.openai_door else []
        names += ["envoy"] if self.options.envoy else []
        return {name: self._processes.address(name) for name in names}

    async def __aenter__(self) -> Self:
        """Returns the mesh; nothing is started yet.

        Raises:
            CommandError: A mesh of this name starts or runs already.
        """
        self._held = _hold(self.folder, self.options.name)
        if self.options.fresh and self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends every child."""
        await asyncio.shield(self.stop())

    async def start_backends(self) -> None:
        """Starts Redis and Triton.

        Raises:
            CommandError: One of them did not start.
        """
        try:
            self._repository = self.options.fleet.write(self.folder / TRITON_FOLDER)
            self.profile = self.options.fleet.kept_profile(self.profile, self.folder)
            specs = [self._processes.redis(), self._processes.triton(self._repository)]
            await self._supervisor.start(specs)
        except (ChildError, TritonServerError) as error:
            raise CommandError(str(error)) from None

    async def start_services(self) -> None:
        """Writes the settings file and starts monitor, trainer, routers and doors.

        Raises:
            CommandError: One of them did not start.
        """
        self.write_settings()
        specs = [self._processes.service("load_monitor", STAGE_MONITOR)]
        if self.options.trainer:
            specs.append(
                self._processes.service("trainer", STAGE_TRAINER, nice=self.layout.trainer_nice)
            )
        specs += [
            self._processes.router(self.options.name, index, picks=self.options.envoy)
            for index in range(self.options.router_count)
        ]
        if self.options.openai_door:
            specs.append(self._processes.service("openai_door", STAGE_DOORS))
        if self.options.envoy:
            specs.append(self._processes.envoy(self.options.router_count, self._smallest_model()))
        try:
            await self._supervisor.start(specs)
        except ChildError as error:
            raise CommandError(str(error)) from None

    def start_count(self, name: str) -> int:
        """How often a child was started, the first time included."""
        return self._supervisor.children[name].start_count

    async def restart_routers(self) -> None:
        """Restarts every router; what they had learned from their traffic is gone.

        Raises:
            CommandError: One did not start again.
        """
        names = [
            self._processes.router(self.options.name, index).name
            for index in range(self.options.router_count)
        ]
        try:
            await asyncio.gather(*(self._supervisor.restart(name) for name in names))
        except ChildError as error:
            raise CommandError(str(error)) from None

    async def stop(self, *, graceful: bool = True) -> None:
        """Ends every child and removes the manifest.

        Does nothing in a process that was forked off the one that has the mesh.
        """
        if os.getpid() != self._owner:
            return
        await self._supervisor.stop(graceful=graceful)
        left = kill_descendants()
        if left:
            self._say(f"ended leftover processes: {', '.join(left)}")
        with contextlib.suppress(OSError):  # one that stays names a process that has ended
            (self.folder / FILE_NAME).unlink(missing_ok=True)
        self._claims.release()
        if self._held is not None:
            self._held.close()

    def write_settings(self) -> None:
        """Writes the settings file from the present profile, quality table and tasks."""
        assert self._repository is not None, "the backends come first"
        endpoints = [
            EndpointSettings(**entry)
            for entry in self._repository.endpoints(
                self._processes.address("triton_grpc"),
                self._processes.address("triton_metrics"),
                self._processes.address("triton_http") if self.options.envoy else "",
            )
        ]
        sections = {
            "router_inference": {
                "policy": self.options.policy,
                "lame_duck_s": 0.2,
                **self.options.sections.get("router_inference", {}),
            },
            "load_monitor": {"lame_duck_s": 0.0, **self.options.sections.get("load_monitor", {})},
            "trainer": {
                "lame_duck_s": 0.0,
                "data_dir": str(self.folder / "trainer"),
                **self.options.sections.get("trainer", {}),
            },
        }
        if self.options.openai_door:
            sections["openai_door"] = {
                "routers": list(self.router_addresses),
                "lame_duck_s": 0.0,
                **self.options.sections.get("openai_door", {}),
            }
        text = settings_text(
            name=self.options.name,
            tiers=self.options.fleet.tiers,
            profile=self.profile.absolute(),
            quality=self.quality.absolute(),
            addresses=self.addresses,
            tasks=self.tasks,
            endpoints=endpoints,
            sections=sections,
        )
        self._processes.config_path.write_text(text, encoding="utf-8")

    def _smallest_model(self) -> str:
        """Name of Triton's model of the smallest tier."""
        assert self._repository is not None, "the backends come first"
        return self._repository.devices[0].models[self.options.fleet.tiers[0]]

    def manifest(self) -> Manifest:
        """What other commands need to know about the mesh."""
        metrics = {"load_monitor": self._processes.address("load_monitor_metrics")}
        if self.options.trainer:
            metrics["trainer"] = self._processes.address("trainer_metrics")
        if self.options.openai_door:
            metrics["openai_door"] = self._processes.address("openai_door_metrics")
        for index in range(self.options.router_count):
            name = f"router-inference-{index}"
            metrics[name] = self._processes.address(f"router{index or ''}_metrics")
        processes = {
            name: {
                "pid": child.pid,
                "log": str(child.spec.log_path),
                "start_count": child.start_count,
            }
            for name, child in self._supervisor.children.items()
        }
        return Manifest(
            name=self.options.name,
            pid=os.getpid(),
            started_ticks=started_ticks(os.getpid()),
            kind=self.options.fleet.kind,
            config=str(self._processes.config_path),
            routers=self.router_addresses,
            addresses=self.addresses,
            metrics=metrics,
            processes=processes,
            cores={
                "service": list(self.layout.service_cores),
                "device": list(self.layout.device_cores),
            },
        )

    def _write_manifest(self) -> None:
        try:
            self.manifest().write(self.folder)
        except OSError as error:
            # The mesh goes on; other commands find it as it was at the last change.
            self._say(f"{self.folder / FILE_NAME}: cannot be written: {error.strerror or error}")


def _hold(folder: pathlib.Path, name: str) -> IO[bytes] | None:
    """Holds the folder of a mesh from before it is touched, whoever starts another of the name.

    The manifest is there only once Redis and Triton are; until then it refuses nobody. The system
    drops the lock when this process ends, however it ends. It lies beside the folder, which `fresh`
    deletes.

    Returns:
        The locked file; None where files cannot be locked, as on some network disks.

    Raises:
        CommandError: Another process holds it.
        OSError: The file cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = (folder.parent / f"{name}.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise CommandError(
            f"a mesh {name!r} is being started or stopped ({folder}); use another --name"
        ) from None
    except OSError:
        file.close()
        return None
    return file


def _refuse_second(folder: pathlib.Path, name: str) -> None:
    try:
        running = find_mesh(name)
    except CommandError:
        return
    raise CommandError(
        f"a mesh {name!r} runs already (pid {running.pid}, {folder}); use another --name"
    )
