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

from router.policies.table import TABLE
from trainer.shipped import work_folder

_POLICIES = tuple(dict.fromkeys(entry.kernel.__module__ for entry in TABLE if entry.kernel))
_MODULES = (
    "router.kernels",
    "router.traffic",
    "router.safety",
    "router.policies.scores",
    "router.reward",
    "router.slowdown",
    *_POLICIES,
    "router.features",
    "router.picker",
    "router.dqn.network",
    "router.policies.table",
    "router.decision",
)
"""Modules in an order in which each uses only earlier ones."""

_COMPILED_HERE = ("compiled", "state", "engine", "loop")
"""Modules of this package with compiled code or its types."""

_ALLOCATING = ("router.dqn.network", "router.policies.paper")
"""Modules whose functions make arrays; the others only fill what they are given."""

# Without the interpreter's lock: two simulations run side by side in two threads.
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}
jit: Any = numba.njit(**{**_OPTIONS, "_nrt": True})
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


def _choice(twins: dict[str, types.ModuleType]) -> types.FunctionType:
    """Returns `router.policies.table.score` with its look-up of a row written out.

    Compiled code cannot call what it finds in a table of functions but by a pointer; a chain of
    comparisons, one for each row, calls each kernel directly.
    """
    scope: dict[str, Any] = twins["router.policies.table"].__dict__
    lines = ["def score(row, fleet, load, allowed_C, query, params_P, s):"]
    for row, entry in enumerate(TABLE):
        if entry.kernel is None:
            continue
        scope[f"score_{row}"] = getattr(twins[entry.kernel.__module__], entry.kernel.__name__)
        lines.append(f"    if row == {row}:")
        lines.append(f"        return score_{row}(fleet, load, allowed_C, query, params_P, s)")
    code: dict[str, Any] = {}
    exec(compile("\n".join(lines), __file__, "exec"), scope, code)  # noqa: S102 - our own text
    function: types.FunctionType = code["score"]
    return function


numba.config.CACHE_DIR = str(_cache_directory())  # type: ignore[attr-defined]

_twins: dict[str, types.ModuleType] = {}
for _name in _MODULES:
    _twins[_name] = _compile(_name, _twins)
    if _name == "router.policies.table":
        vars(_twins[_name])["score"] = jit_unmanaged(_choice(_twins))


def twin(module: types.ModuleType) -> Any:
    """Returns the compiled twin of a router's module."""
    return _twins[module.__name__]


# Typed loosely: what matters to callers is that numba finds compiled functions here.
kernels: Any = _twins["router.kernels"]
traffic: Any = _twins["router.traffic"]
safety: Any = _twins["router.safety"]
reward: Any = _twins["router.reward"]
slowdown: Any = _twins["router.slowdown"]
features: Any = _twins["router.features"]
picker: Any = _twins["router.picker"]
decision: Any = _twins["router.decision"]
