"""Simulations side by side in threads: compiled code runs without the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

MOST_THREADS = 4
"""More would mostly wait for each other: setting a simulation up holds the lock."""


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1), "simulation")


def side_by_side(work: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
    """Returns `work` of each item, in their order; what one raises is raised here."""
    return list(_pool().map(work, items))
