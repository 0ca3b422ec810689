"""Each image installs what its service imports; nothing comes from a tool that is here by chance."""

from __future__ import annotations

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

# grpc imports grpcio-tools where it is there and does without where it is not; setuptools hooks
# itself into every start of the interpreter.
_OPTIONAL = {"grpcio-tools", "setuptools"}


def _owners(files: set[str]) -> set[str]:
    """Returns the names of the distributions that installed the files."""
    found = set()
    for distribution in importlib.metadata.distributions():
        root = str(distribution.locate_file(""))
        own = (f"{root}/{file}" for file in distribution.files or ())
        if not files.isdisjoint(own):
            found.add(canonicalize_name(distribution.metadata["Name"]))
    return found


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
    ("module", "extras"),
    [
        ("services.router_inference.app", frozenset[str]()),
        ("services.load_monitor.app", frozenset[str]()),
        ("services.client.sync_client", frozenset[str]()),
        ("services.common.health_probe", frozenset[str]()),
        ("services.trainer.app", frozenset({"trainer"})),
    ],
)  # fmt: skip
def test_imports_come_from_declared_dependencies(module: str, extras: frozenset[str]) -> None:
    """Every distribution loaded with the module is installed by the wheel (and its extra)."""
    done = subprocess.run(
        [sys.executable, "-c", _LIST_FILES, module],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    loaded = _owners(set(json.loads(done.stdout)))
    assert "grpcio" in loaded
    assert loaded - _OPTIONAL <= _closure("tiercel", extras)
