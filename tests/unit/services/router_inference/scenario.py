"""Tests of a router that run in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from tests.fakes.virtual_time import run_virtual


def scenario(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Runs a test in virtual time."""

    def wrapped() -> None:
        run_virtual(test())

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped
