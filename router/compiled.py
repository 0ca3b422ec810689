"""Compiled twins of the router's kernel modules: for the simulator, and for a live router's call.

Each function of the listed modules is given to a compiler (numba's, see `router.entry` and
`trainer.simulation.compiled`) under the globals of a twin module: the code object is the router's
own, so there is no second copy that could drift. Twins refer to each other's compiled functions;
classes and constants are the originals.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from router.folders import work_folder
from router.policies.table import TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Jit = Callable[[types.FunctionType], Any]

_POLICIES = tuple(dict.fromkeys(entry.kernel.__module__ for entry in TABLE if entry.kernel))
MODULES: Final = (
    "router.kernels",
    "router.traffic",
    "router.safety",
    "router.policies.scores",
    "router.home",
    "router.seat",
    "router.reward",
    "router.slowdown",
    "router.reserve",
    "router.priority",
    *_POLICIES,
    "router.pressure",
    "router.shortlist",
    "router.features",
    "router.picker",
    "router.dqn.network",
    "router.policies.table",
    "router.decision",
    "router.iteration_spread",
)
"""Modules in an order in which each uses only earlier ones."""

_ALLOCATING = ("router.dqn.network", "router.policies.paper")
"""Modules whose functions make arrays; the others only fill what they are given."""

CACHE_VARIABLE: Final = "TIERCEL_NUMBA_CACHE"
"""Environment variable that names another folder for compiled code."""


def cache_folder() -> Path:
    """Returns the folder for compiled code."""
    base = os.environ.get(CACHE_VARIABLE)
    return Path(base) if base else work_folder("numba")


def digest_of(files: Iterable[Path]) -> str:
    """Returns a name for exactly these sources and those of the kernels."""
    digest = hashlib.sha256()
    kernels = [Path(inspect.getfile(importlib.import_module(name))) for name in MODULES]
    for path in sorted([*kernels, *files]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def twin_name(prefix: str, module: str) -> str:
    """Returns the name in `sys.modules` of a module's twin."""
    return f"{prefix}_{module.replace('.', '_')}"


def make_twins(prefix: str, managed: Jit, unmanaged: Jit) -> dict[str, types.ModuleType]:
    """Returns the compiled twin of each of `MODULES` by name.

    Args:
        prefix: of the twins' names in `sys.modules`.
        managed: compiles functions that make arrays.
        unmanaged: compiles the others. Without reference counting: their arguments are tuples of
            some sixty arrays, and counting each of them at every call would cost more than the
            calls do. What it compiles must not return an array to what `managed` compiled.
    """
    twins: dict[str, types.ModuleType] = {}
    for name in MODULES:
        jit = managed if name in _ALLOCATING else unmanaged
        twins[name] = _twin(name, twin_name(prefix, name), twins, jit)
        if name == "router.policies.table":
            vars(twins[name])["score"] = unmanaged(_choice(twins))
    return twins


def _twin(
    name: str, twin_name: str, twins: dict[str, types.ModuleType], jit: Jit
) -> types.ModuleType:
    """Returns the twin of a module: same code objects, compiled, calling other twins."""
    original = importlib.import_module(name)
    # numba's cache finds a function's globals again by importing its module by name.
    twin = sys.modules[twin_name] = types.ModuleType(twin_name)
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
        scope[key] = jit(function)
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
