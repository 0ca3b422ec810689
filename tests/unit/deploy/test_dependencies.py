"""Each image installs what its service imports; nothing comes from a tool here by chance."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.deploy.manifests import ROOT

_LIST_FILES = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
print(json.dumps([file for file in files if file and "site-packages" in file]))
"""

# grpc imports grpcio-tools and its siblings, and numba pyyaml, where they are there, and do without
# where they are not, as redis does with cryptography and anyio with sniffio; setuptools hooks
# itself into every start of the interpreter.
_OPTIONAL = {
    "cryptography", "grpcio-health-checking", "grpcio-reflection", "grpcio-tools", "pyyaml",
    "setuptools", "sniffio",
}  # fmt: skip


@functools.cache
def _owner_by_file() -> dict[str, str]:
    """Returns the name of the distribution that installed each file."""
    owners: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        root = str(distribution.locate_file(""))
        owners.update((f"{root}/{file}", name) for file in distribution.files or ())
    return owners


def closure(distribution: str) -> set[str]:
    """Returns the names of everything that installing a distribution installs."""
    found: set[str] = set()
    asked = Requirement(distribution)
    waiting = [(asked.name, frozenset(asked.extras))]
    visited: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        current, wanted = waiting.pop()
        if (current, wanted) in visited:
            continue
        visited.add((current, wanted))
        found.add(current)
        for text in importlib.metadata.requires(current) or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in (*wanted, "")):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


@pytest.mark.parametrize(
    ("module", "installed"),
    [
        ("services.router_inference.app", "tiercel"),
        ("router.entry", "tiercel[compiled]"),
        ("services.load_monitor.app", "tiercel"),
        ("services.openai_door.app", "tiercel"),
        ("tiercel", "tiercel-client[telemetry]"),
        ("services.common.health_probe", "tiercel"),
        ("services.local.triton.repository.__main__", "tiercel"),
        ("services.trainer.app", "tiercel[trainer]"),
        ("services.trainer.jobs", "tiercel[trainer]"),
        ("trainer.simulation.environment", "tiercel[trainer]"),
        ("services.demo.report", "tiercel[trainer]"),
        ("services.demo.run", "tiercel[trainer,embedded]"),
        ("services.cli.demo", "tiercel"),
    ],
)
def test_imports_come_from_declared_dependencies(module: str, installed: str) -> None:
    """Every distribution loaded with the module is installed by the wheel that brings it."""
    done = subprocess.run(
        [sys.executable, "-c", _LIST_FILES, module],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    loaded = {_owner_by_file().get(file, file) for file in json.loads(done.stdout)}
    assert loaded - _OPTIONAL
    assert loaded - _OPTIONAL <= closure(installed)


def test_mesh_and_client_are_of_one_version() -> None:
    """The mesh's wheel asks for exactly the client that is built from the same tree."""
    client, mesh = (
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for folder in ("services/client", ".")
    )
    assert mesh["version"] == client["version"]
    assert f"{client['name']}=={client['version']}" in mesh["dependencies"]


def test_the_client_accepts_ranges() -> None:
    """It lives in other people's programs, so no dependency of it is pinned."""
    text = (ROOT / "services" / "client" / "pyproject.toml").read_text(encoding="utf-8")
    for entry in tomllib.loads(text)["project"]["dependencies"]:
        operators = {each.operator for each in Requirement(entry).specifier}
        assert operators == {">=", "<"}, entry
