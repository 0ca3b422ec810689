"""The router's kernel modules as the simulator compiles them (`router.compiled`), and its compiler.

Machine code is cached on disk, in a directory named by a digest of every source file involved:
numba's own cache watches only the file of the function itself, not those it calls.
"""

from __future__ import annotations

import types
import warnings
from pathlib import Path
from typing import Any

import numba
from numba.core.registry import CPUDispatcher

from router.compiled import cache_folder, digest_of, make_twins

_COMPILED_HERE = ("compiled", "state", "dice", "engine", "loop")
"""Modules of this package with compiled code or its types."""

# Without the interpreter's lock: two simulations run side by side in two threads.
_OPTIONS: dict[str, Any] = {
    "cache": True,
    "error_model": "numpy",
    "nogil": True,
    "no_cfunc_wrapper": True,
}


class _Inner(CPUDispatcher):
    """A function that compiled code calls.

    It has no code that takes Python's objects apart, which would be a quarter of all that is
    compiled: its arguments are tuples of some sixty arrays. Where Python calls it after all (a
    test), such code is compiled around it then.
    """

    def __call__(self, *arguments: Any) -> Any:
        if not hasattr(self, "_from_python"):
            inner = self
            options = {"_nrt": self.targetoptions["_nrt"]}
            self._from_python = numba.njit(**options)(lambda *given: inner(*given))
        return self._from_python(*arguments)


def _compiler(*, counts_references: bool, is_inner: bool = False) -> Any:
    """Returns a decorator whose functions run where their code cannot be kept, too."""
    options = {**_OPTIONS, "_nrt": counts_references, "no_cpython_wrapper": is_inner}
    compile_ = numba.njit(**options)

    def decorate(function: types.FunctionType) -> Any:
        compiled: Any = compile_(function)
        if is_inner:
            compiled.__class__ = _Inner
        keep = compiled._cache.save_overload

        def keep_if_possible(*what: Any) -> None:
            try:
                keep(*what)
            except OSError as error:  # a full disk, at the end of a minute's work
                warnings.warn(f"compiled code is not kept: {error}", stacklevel=2)

        compiled._cache.save_overload = keep_if_possible
        return compiled

    return decorate


jit: Any = _compiler(counts_references=True)
jit_unmanaged: Any = _compiler(counts_references=False)
"""Compiles without reference counting; see `make_twins`."""
jit_inner: Any = _compiler(counts_references=False, is_inner=True)
"""The same for what compiled code alone calls."""

numba.config.CACHE_DIR = str(  # type: ignore[attr-defined]
    cache_folder() / digest_of(Path(__file__).with_name(f"{stem}.py") for stem in _COMPILED_HERE)
)
_twins = make_twins(__name__, _compiler(counts_references=True, is_inner=True), jit_inner)


def twin(module: types.ModuleType) -> Any:
    """Returns the compiled twin of a router's module."""
    return _twins[module.__name__]


# Typed loosely: what matters to callers is that numba finds compiled functions here.
kernels: Any = _twins["router.kernels"]
traffic: Any = _twins["router.traffic"]
safety: Any = _twins["router.safety"]
home: Any = _twins["router.home"]
seat: Any = _twins["router.seat"]
reward: Any = _twins["router.reward"]
slowdown: Any = _twins["router.slowdown"]
reserve: Any = _twins["router.reserve"]
priority: Any = _twins["router.priority"]
features: Any = _twins["router.features"]
pressure: Any = _twins["router.pressure"]
picker: Any = _twins["router.picker"]
decision: Any = _twins["router.decision"]
iteration_spread: Any = _twins["router.iteration_spread"]
