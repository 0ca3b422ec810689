"""What a soak judges."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.soak.crowd import Window
from tests.soak.hour import Run
from tests.soak.readings import FAR, IN_A_ROW, run_away
from tests.soak.verdict import verdicts

FLAT = {"memory_mb": 200.0, "descriptors": 30.0, "threads": 9.0, "tasks": 25.0}
GOOD = Window(sent=100, on_time=98, late=0, refused=0, left=2, failed=0, p50_ms=10.0, p99_ms=50.0)


def run_of(*, growing: str = "", last: Window = GOOD) -> Run:
    """Returns a run of a router of which one number grows by a tenth of it in each window."""
    run = Run(60.0, 100.0, 60.0, 1.0)
    for number in range(60):
        held = dict(FLAT)
        if growing:
            held[growing] *= 1.0 + 0.1 * number
        run.windows.append(last if number >= 50 else GOOD)
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
    assert verdicts(run_of(last=replace(GOOD, p99_ms=80.0))) == ["p99 from 50 to 80 ms"]


@pytest.mark.parametrize("kind", ["late", "refused"])
def test_a_mesh_that_turns_requests_away_is_not_well(kind: str) -> None:
    """Nothing fails, and those few that are answered are answered at once."""
    bad = replace(GOOD, on_time=8, **{kind: 90})
    assert verdicts(run_of(last=bad)) == ["share in time from 1.000 to 0.082"]
    none = replace(GOOD, on_time=0, p50_ms=0.0, p99_ms=0.0, **{kind: 98})
    assert verdicts(run_of(last=none)) == [
        "share in time from 1.000 to 0.000",
        "p99 from 50 to inf ms",
    ]


def test_a_mesh_that_is_late_from_its_beginning_is_not_well() -> None:
    """The rate is a part of one that it held; of a rate that was given nobody knows."""
    run = run_of()
    run.windows = [replace(GOOD, on_time=50, late=48)] * 60
    assert verdicts(run) == ["share in time from 0.510 to 0.510"]
    assert verdicts(replace(run, capacity_rps=0.0)) == []


def test_a_run_without_a_request_is_not_well() -> None:
    """Clients that all give up, and one that was cut short before its first window."""
    run = run_of()
    run.windows = [replace(GOOD, sent=2, on_time=0)] * 60
    assert verdicts(run) == ["share in time from nan to nan"]
    short = Run(60.0, 0.0, 60.0, 1.0, past_s=0.5, cut_short="the load: gone")
    assert verdicts(short) == ["ended after 0 s: the load: gone", "nothing was measured"]


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


@pytest.mark.parametrize("growing", FLAT)
def test_what_runs_away_ends_the_run(growing: str) -> None:
    """Once it is beyond twice its room several times over; not for growth that ends, nor once."""
    held = run_of(growing=growing).held
    assert run_away(run_of().held, 60) == []
    assert run_away(held[:20], 60) == []
    (said,) = run_away(held, 60)
    assert said.startswith(f"router-inference-0 runs away: {growing} from ")
    once = [*run_of().held, held[-1]]
    assert run_away(once, 60) == []
    assert run_away([*once, *[held[-1]] * (IN_A_ROW - 1)], 60) != []
    assert FLAT[growing] * FAR < held[-1]["router-inference-0"][growing]
