"""How each process of an embedded mesh is run: command, cores, ports and readiness."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from services.local import backends, probes
from services.local.child import ChildSpec
from services.local.cores import CoreLayout
from services.local.envoy import envoy_config, envoy_program
from services.local.launch import module_command
from services.local.ports import DEFAULT_PORTS, HOST
from services.local.triton.repository.layout import ServerRepository

STAGE_BACKENDS, STAGE_MONITOR, STAGE_TRAINER, STAGE_ROUTERS, STAGE_DOORS = range(5)
THREAD_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclasses.dataclass(frozen=True)
class Processes:
    """Processes of one mesh.

    Attributes:
        folder: Where the mesh's files lie.
        ports: Port numbers by name, see ``wanted_ports``.
        layout: Who runs on which processor.
    """

    folder: pathlib.Path
    ports: Mapping[str, int]
    layout: CoreLayout

    @property
    def config_path(self) -> pathlib.Path:
        """Settings file of the services."""
        return self.folder / "tiercel.toml"

    def address(self, port_name: str) -> str:
        """Address of what listens on a port."""
        return f"{HOST}:{self.ports[port_name]}"

    def redis(self) -> ChildSpec:
        """Redis, ready by PING."""
        data = self.folder / "redis"
        data.mkdir(exist_ok=True)
        address = self.address("redis")
        command = backends.redis_command(self.ports["redis"], data)
        return ChildSpec(
            name="redis",
            command=command,
            is_ready=lambda: probes.redis_answers(address),
            log_path=self.folder / "logs" / "redis.log",
            stage=STAGE_BACKENDS,
            cores=self.layout.service_cores,
            ready_timeout_s=20.0,
        )

    def triton(self, repository: ServerRepository) -> ChildSpec:
        """Triton on a repository, ready when every model is."""
        command = backends.triton_command(
            repository.path,
            ports={name: self.ports[f"triton_{name}"] for name in ("grpc", "http", "metrics")},
            cores=self.layout.device_cores,
            nice=self.layout.tier_nice,
            log_path=self.folder / "logs" / "triton-server.log",
        )
        http, grpc = self.address("triton_http"), self.address("triton_grpc")
        return ChildSpec(
            name="triton",
            command=command,
            is_ready=lambda: probes.http_ok(http, "/v2/health/ready"),
            is_alive=lambda: probes.triton_answers(grpc),
            log_path=self.folder / "logs" / "triton.log",
            stage=STAGE_BACKENDS,
            ready_timeout_s=180.0,
            stop_timeout_s=30.0,
        )

    def envoy(self, router_count: int, model: str) -> ChildSpec:
        """Envoy before the routers; requests go to `model` while no router answers.

        Raises:
            CommandError: It is not installed.
        """
        admin = self.address("envoy_admin")
        path = self.folder / "envoy.yaml"
        text = envoy_config(
            listen=self.address("envoy"),
            admin=admin,
            pickers=[self.address(f"picker{index or ''}") for index in range(router_count)],
            tiers=[self.address("triton_http")],
            model=model,
        )
        path.write_text(text, encoding="utf-8")
        options = ("--concurrency", "1", "--disable-hot-restart", "-l", "warning")
        return ChildSpec(
            name="envoy",
            command=(envoy_program(), "-c", str(path), *options),
            is_ready=lambda: probes.http_ok(admin, "/ready"),
            log_path=self.folder / "logs" / "envoy.log",
            stage=STAGE_DOORS,
            cores=self.layout.service_cores,
        )

    def router(self, mesh: str, index: int, *, picks: bool = False) -> ChildSpec:
        """The router with this number; `picks` has it asked by Envoy too."""
        asked = f"router_inference.envoy_listen={self.address(f'picker{index or str()}')}"
        return self.service(
            "router_inference",
            STAGE_ROUTERS,
            name=f"router-inference-{index}",
            port=f"router{index or ''}",
            extra=(
                *("--set", f"router_inference.router_id={mesh}-{index}"),
                *(("--set", asked) if picks else ()),
            ),
            # The first of a version compiles its decision, and the others wait for it.
            ready_timeout_s=240.0,
        )

    def service(
        self,
        section: str,
        stage: int,
        *,
        name: str = "",
        port: str = "",
        nice: int = 0,
        extra: tuple[str, ...] = (),
        ready_timeout_s: float = 60.0,
    ) -> ChildSpec:
        """A service, ready by its ready file.

        Args:
            section: Its section of the settings file, for instance ``load_monitor``.
            stage: When it is started.
            name: Name of the process; empty means that of the section.
            port: Name of its port; empty means the section.
            nice: Nice level.
            extra: Further arguments.
            ready_timeout_s: Longest time from start to ready.
        """
        name, port = name or section.replace("_", "-"), port or section
        ready_file = self.folder / "ready" / f"{name}.json"
        ready_file.parent.mkdir(exist_ok=True)
        command = (
            *module_command(f"services.{section}", "--config", str(self.config_path)),
            *("--listen", self.address(port)),
            *("--metrics-listen", self.address(f"{port}_metrics")),
            *("--ready-file", str(ready_file)),
            *extra,
        )
        return ChildSpec(
            name=name,
            command=command,
            is_ready=lambda: probes.file_exists(ready_file),
            ready_file=ready_file,
            ready_timeout_s=ready_timeout_s,
            log_path=self.folder / "logs" / f"{name}.log",
            stage=stage,
            variables=THREAD_VARIABLES,
            cores=self.layout.service_cores,
            nice=nice,
        )


def wanted_ports(router_count: int) -> dict[str, int]:
    """Default ports; further routers ask for the ports after those of all first ones."""
    wanted = dict(DEFAULT_PORTS)
    for index in range(1, router_count):
        wanted[f"router{index}"] = DEFAULT_PORTS["trainer"] + index
        wanted[f"router{index}_metrics"] = DEFAULT_PORTS["trainer_metrics"] + index
        wanted[f"picker{index}"] = DEFAULT_PORTS["picker"] + index
    return wanted
