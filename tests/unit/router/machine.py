"""The compiled decision for tests: made once per version, then read from its folder."""

from __future__ import annotations

from functools import cache

from router.bound import Bind
from router.compiled import cache_folder
from services.common.log import get_logger
from services.router_inference.machine_code import MachineCode, obtain, run_compiler


@cache
def _found() -> MachineCode:
    return obtain(get_logger(__name__), cache_folder(), run_compiler)


def compiled_bind() -> Bind:
    """Returns what binds compiled decisions."""
    assert not _found().problem, _found().problem
    return _found().bind
