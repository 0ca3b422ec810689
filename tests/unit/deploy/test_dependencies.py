"""Each image installs what its service imports; nothing comes from a tool here by chance."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_LIST_FILES = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
print(json.dumps([file for file in files if file and "site-packages" in file]))
"""

# grpc imports grpcio-tools, and numba pyyaml, where they are there, and do without where they are
# not; setuptools hooks itself into every start of the interpreter.
_OPTIONAL = {"grpcio-tools", "pyyaml", "setuptools"}


@functools.cache
def _owner_by_file() -> dict[str, str]:
    """Returns the name of the distribution that installed each file."""
    owners: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        root = str(distribution.locate_file(""))
        owners.update((f"{root}/{file}", name) for file in distribution.files or ())
    return owners


def _closure(name: str, extras: frozenset[str]) -> set[str]:
    """Returns the names of everything that installing a distribution installs."""
    found: set[str] = set()
    waiting = [(name, extras)]
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
    ("module", "extra"),
    [
        ("services.router_inference.app", ""),
        ("services.load_monitor.app", ""),
        ("services.client.sync_client", ""),
        ("services.common.health_probe", ""),
        ("services.local.triton.repository", ""),
        ("services.trainer.app", "trainer"),
        ("services.trainer.jobs", "trainer"),
        ("trainer.simulation.environment", "trainer"),
        ("services.demo.report", "trainer"),
    ],
)
def test_imports_come_from_declared_dependencies(module: str, extra: str) -> None:
    """Every distribution loaded with the module is installed by the wheel (and its extra)."""
    done = subprocess.run(
        [sys.executable, "-c", _LIST_FILES, module],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    loaded = {_owner_by_file().get(file, file) for file in json.loads(done.stdout)}
    assert loaded - _OPTIONAL
    assert loaded - _OPTIONAL <= _closure("tiercel", frozenset({extra}) - {""})
