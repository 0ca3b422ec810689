"""Reads what deploy/ says: image stages, Compose services, Kubernetes resources, settings files."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from services.common.access.keys import new_key, write_keys
from services.common.access.roles import Role
from services.local.redis_users import make_redis_users
from tests import certificates
from tests.unit.deploy import kustomize

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
CONFIG_IN_IMAGE = "deploy/config/mesh/tiercel.toml"
SERVICES = {
    "router-inference": "router_inference",
    "load-monitor": "load_monitor",
    "trainer": "trainer",
}
"""Process name and section (also package) of each gRPC service."""
DOORS = {"openai-door": "openai_door"}
"""The same of each service that speaks HTTP."""
ALL_SERVICES = {**SERVICES, **DOORS}
MESHES = ("reference", "paced", "production")
INSECURE = "overlays/insecure-open-to-network"
KEDA = "overlays/production-keda"
GATEWAY = "overlays/gateway"
OVERLAYS = ("base", "overlays/production", KEDA, INSECURE, GATEWAY)
TOOLS = ROOT / "build" / "tools" / "usr" / "bin"
_TIMEOUT_S = 60.0


def config_path(mesh: str) -> Path:
    """Returns the settings file of a mesh."""
    return DEPLOY / "config" / mesh / "tiercel.toml"


def section(mesh: str, service: str) -> dict[str, Any]:
    """Returns a service's raw section of a mesh's settings file."""
    document = tomllib.loads(config_path(mesh).read_text(encoding="utf-8"))
    found: dict[str, Any] = document[ALL_SERVICES[service]]
    return found


def port(address: str) -> int:
    """Returns the port of `host:port`."""
    return int(address.rpartition(":")[2])


@dataclass
class Stage:
    """One stage of the Dockerfile."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        """Returns the arguments of every such instruction."""
        return [value for name, value in self.instructions if name == instruction]

    def command(self, instruction: str) -> list[str]:
        """Returns the last such instruction's exec form."""
        text = self.values(instruction)[-1]
        parsed: list[str] = json.loads(text[text.index("[") :])
        return parsed


def dockerfile_stages() -> dict[str, Stage]:
    """Returns the stages of deploy/docker/Dockerfile by name; the last one is called `final`."""
    text = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in filter(None, (line.strip() for line in text.splitlines())):
        instruction, _, value = line.partition(" ")
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            current = stages.setdefault(name or "final", Stage(name or "final", base))
        elif current is not None:
            current.instructions.append((instruction, value.strip()))
    return stages


def compose(*layers: str, variables: dict[str, str] | None = None) -> dict[str, Any]:
    """Returns the merged Compose file, as Docker Compose itself resolves it (no daemon needed)."""
    return copy.deepcopy(_resolved(layers, tuple(sorted((variables or {}).items()))))


@functools.cache
def tls_folder() -> Path:
    """Returns what the commands at the head of compose.yaml make."""
    made = certificates.folder()
    make_redis_users(made, address="redis:6379", roots="/run/tls/ca.crt")
    (made / "keys").mkdir()
    write_keys(made / "keys" / "keys.toml", [new_key("me", [Role.DATA])[0]])
    return made


@functools.cache
def _resolved(layers: tuple[str, ...], variables: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("docker-compose"))]
    for layer in ("compose.yaml", *layers):
        command += ["-f", str(DEPLOY / layer)]
    command += ["config", "--format", "json"]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **dict(variables)}
    environment["TIERCEL_TLS"] = str(tls_folder())
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=environment, check=False
    )
    # The packaged binary ends with 0 even when it refuses a file: what it prints is what counts.
    if done.returncode != 0 or done.stderr or not done.stdout:
        raise AssertionError(f"docker-compose config: {done.stderr}")
    resolved: dict[str, Any] = json.loads(done.stdout)
    return resolved


def rendered(overlay: str) -> list[dict[str, Any]]:
    """Returns the resources of deploy/kubernetes/<overlay>."""
    return copy.deepcopy(_rendered(overlay))


@functools.cache
def _rendered(overlay: str) -> list[dict[str, Any]]:
    return kustomize.render(DEPLOY / "kubernetes" / overlay)


def resource(resources: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """Returns one resource by kind and name (without the hash of a generated name)."""
    for candidate in resources:
        own = candidate["metadata"]["name"]
        if candidate["kind"] == kind and (
            own == name or re.fullmatch(f"{name}-[0-9a-z]{{10}}", own)
        ):
            return candidate
    raise AssertionError(f"no {kind} {name}")


def pod(resources: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Returns the pod spec of the Deployment or StatefulSet of that name."""
    kinds = {entry["metadata"]["name"]: entry for entry in resources if _has_pod(entry)}
    found: dict[str, Any] = kinds[name]["spec"]["template"]["spec"]
    return found


def _has_pod(entry: dict[str, Any]) -> bool:
    return entry["kind"] in {"Deployment", "StatefulSet"}


def tool(name: str) -> str | None:
    """Returns the path of a checker: from PATH, or unpacked by `make` into build/tools."""
    unpacked = TOOLS / name
    return shutil.which(name) or (str(unpacked) if unpacked.is_file() else None)


def load_yaml(path: Path) -> Any:
    """Returns the content of a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))
