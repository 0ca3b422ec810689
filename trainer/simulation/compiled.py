"""The router's kernel modules, compiled.

Each function of the listed modules is wrapped by `numba.njit` under the globals of a twin module:
the code object is the router's own, so there is no second copy that could drift. Twins refer to
each other's compiled functions; classes and constants are the originals.

Machine code is cached on disk, in a directory named by a digest of every source file involved:
numba's own cache watches only the file of the function itself, not those it calls.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import types
from pathlib import Path
from typing import Any

import numba

from trainer.shipped import work_folder

_MODULES = (
    "router.kernels",
    "router.traffic",
    "router.safety",
    "router.policies.scores",
    "router.slowdown",
    "router.policies.schedule",
    "router.features",
    "router.policies.baselines",
    "router.picker",
    "router.dqn.network",
    "router.dqn.paper",
)
"""Modules in an order in which each uses only earlier ones."""

_COMPILED_HERE = ("compiled", "state", "engine", "loop")
"""Modules of this package with compiled code or its types."""

_ALLOCATING = ("router.dqn.network", "router.dqn.paper")
"""Modules whose functions make arrays; the others only fill what they are given."""

# Without the interpreter's lock: two simulations run side by side in two threads.
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}
jit: Any = numba.njit(**_OPTIONS)
jit_unmanaged: Any = numba.njit(**{**_OPTIONS, "_nrt": False})
"""Compiles without reference counting: the world is a tuple of some thirty arrays, and counting
each of them at every call would cost more than the calls do."""

CACHE_VARIABLE = "TIERCEL_NUMBA_CACHE"
"""Environment variable that names another directory for compiled code."""


def _cache_directory() -> Path:
    """Returns the directory for compiled code of exactly these sources."""
    digest = hashlib.sha256()
    files = [Path(inspect.getfile(importlib.import_module(name))) for name in _MODULES]
    files += [Path(__file__).with_name(f"{stem}.py") for stem in _COMPILED_HERE]
    for path in sorted(files):
        digest.update(path.read_bytes())
    base = os.environ.get(CACHE_VARIABLE)
    return (Path(base) if base else work_folder("numba")) / digest.hexdigest()[:16]


def _compile(name: str, twins: dict[str, types.ModuleType]) -> types.ModuleType:
    """Returns the twin of a module: same code objects, compiled, calling other twins."""
    original = importlib.import_module(name)
    # numba's cache finds a function's globals again by importing its module by name.
    twin = types.ModuleType(f"{__name__}_{name.replace('.', '_')}")
    sys.modules[twin.__name__] = twin
    scope: dict[str, Any] = twin.__dict__
    own: dict[str, types.FunctionType] = {}
    for key, value in vars(original).items():
        if key.startswith("__"):
            continue
        if isinstance(value, types.FunctionType) and value.__module__ == name:
            own[key] = value
        elif isinstance(value, types.ModuleType):
            scope[key] = twins.get(value.__name__, value)
        else:
            scope[key] = value
    for key, value in own.items():
        function = types.FunctionType(value.__code__, scope, key, value.__defaults__)
        function.__qualname__ = value.__qualname__
        scope[key] = jit(function) if name in _ALLOCATING else jit_unmanaged(function)
    return twin


numba.config.CACHE_DIR = str(_cache_directory())  # type: ignore[attr-defined]

_twins: dict[str, types.ModuleType] = {}
for _name in _MODULES:
    _twins[_name] = _compile(_name, _twins)

# Typed loosely: what matters to callers is that numba finds compiled functions here.
kernels: Any = _twins["router.kernels"]
features: Any = _twins["router.features"]
traffic: Any = _twins["router.traffic"]
safety: Any = _twins["router.safety"]
scores: Any = _twins["router.policies.scores"]
slowdown: Any = _twins["router.slowdown"]
schedule: Any = _twins["router.policies.schedule"]
baselines: Any = _twins["router.policies.baselines"]
picker: Any = _twins["router.picker"]
network: Any = _twins["router.dqn.network"]
paper: Any = _twins["router.dqn.paper"]
