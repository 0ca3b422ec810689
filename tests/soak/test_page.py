"""What a soak judges."""

from __future__ import annotations

import pytest

from tests.soak.crowd import Window
from tests.soak.hour import Run
from tests.soak.page import verdicts

FLAT = {"memory_mb": 200.0, "descriptors": 30.0, "threads": 9.0, "tasks": 25.0}


def run_of(*, growing: str = "", last_p99_ms: float = 50.0) -> Run:
    """Returns a run of a router of which one number grows by a tenth of it in each window."""
    run = Run(60.0, 100.0, 60.0, 1.0)
    for number in range(60):
        held = dict(FLAT)
        if growing:
            held[growing] *= 1.0 + 0.1 * number
        p99_ms = last_p99_ms if number >= 50 else 50.0
        run.windows.append(Window(100, 98, 0, 0, 2, 0, 10.0, p99_ms))
        run.held.append({"router-inference-0": held, "redis": held})
    return run


def test_a_mesh_that_holds_what_it_held_is_well() -> None:
    """Nothing is said of it."""
    assert verdicts(run_of()) == []


@pytest.mark.parametrize("growing", FLAT)
def test_what_grows_is_said(growing: str) -> None:
    """By process, quantity and numbers; what fills up to a bound of its own is not judged."""
    (line,) = verdicts(run_of(growing=growing))
    assert line.startswith(f"router-inference-0: {growing} from ")


def test_slower_answers_at_the_end_are_said() -> None:
    """The last sixth stands beside the first."""
    assert verdicts(run_of(last_p99_ms=80.0)) == ["p99 from 50 to 80 ms"]


def test_what_failed_started_again_or_stayed_connected_is_said() -> None:
    """Each with its number."""
    run = run_of()
    run.windows.append(Window(1, 0, 0, 0, 0, 1, 0.0, 50.0))
    run.held.append(run.held[-1])
    run.errors, run.starts, run.connections_left = {"UNAVAILABLE": 1}, {"trainer": 2}, 3
    assert verdicts(run) == [
        "1 requests failed: {'UNAVAILABLE': 1}",
        "started again: trainer",
        "3 connections to endpoints that had left",
    ]
