"""Whose CPU time it was."""

from __future__ import annotations

import os

import psutil
import pytest

from services.live.cpu import busy_share, process_cpu_s, tree_cpu_s


def test_a_process_and_those_below_it() -> None:
    """At least its own, which only grows."""
    before_s = process_cpu_s(os.getpid())
    assert tree_cpu_s(os.getpid()) >= before_s > 0.0


def test_one_that_is_gone_is_told() -> None:
    """A number that no process can have."""
    with pytest.raises(psutil.NoSuchProcess):
        tree_cpu_s(2**22 + 1)


def test_busy_is_what_was_not_idle() -> None:
    """Waiting for a disk is idle."""

    class Times(tuple[float, ...]):
        idle = property(lambda self: self[3])
        iowait = property(lambda self: self[4])

    before, after = Times([0.0] * 10), Times([2.0, 1.0, 0.0, 4.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert busy_share(before, after) == pytest.approx(3.0 / 8.0)
