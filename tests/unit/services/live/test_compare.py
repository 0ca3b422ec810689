"""Both sides of a point, and which points count."""

from __future__ import annotations

import dataclasses
import json

import pytest

from services.live.compare import (
    LEAST_REQUESTS,
    LEAST_SCALE,
    is_within,
    live,
    point,
    problem_of,
    simulated,
)
from services.live.report import live_figure, live_table, verdict
from services.loadgen.records import FAILED
from tests.unit.services.live.subjects import PLAN, live_run


def test_time_is_stretched_as_far_as_a_load_needs() -> None:
    """Unless a factor is given; a run counts some deadlines however long they have become."""
    free = dataclasses.replace(PLAN, time_scale=0.0)
    assert free.scale(100.0) == LEAST_SCALE
    assert free.scale(4_800.0) == 32.0
    assert PLAN.scale(4_800.0) == 20.0
    phases = free.spec(("127.0.0.1:1",), ("piqa",), 100.0, 800.0, 0).phases
    assert [each.duration_s for each in phases] == [100.0, 100.0]


def test_a_live_run_counts_without_its_warm_up_in_the_profiles_own_time() -> None:
    """Cut off at the deadline counts with the time it took."""
    scores = live(live_run())
    assert scores.requests == 3
    assert scores.mean_s == pytest.approx((4.0 + 4.0 + 8.0) / 3.0 / 20.0)
    assert scores.availability == pytest.approx(2.0 / 3.0)
    assert scores.performance == pytest.approx(0.5)


def test_the_simulator_answers_the_requests_of_the_run() -> None:
    """Always-small holds four times what the largest tier holds; small answers are quick."""
    run = live_run(policy="static-small")
    scores = simulated(PLAN, run, None)
    counted = [each for each in run.spec.arrivals().arrival_s if each >= 20.0]
    assert scores.requests == len(counted)
    assert scores.availability > 0.99
    assert 0.0 < scores.mean_s < 0.1
    assert scores.mix == {"small": 1.0, "medium": 0.0, "large": 0.0}


def test_a_point_on_a_busy_machine_is_shown_and_does_not_count() -> None:
    """It says why; its errors stand beside."""
    run = live_run()
    there = live(live_run(latency_s=3.9))
    calm, busy = point(PLAN, run, there), point(PLAN, live_run(busy=0.8), there)
    assert calm["counts"]
    assert calm["within"]
    assert calm["error"]["mean"] == pytest.approx(0.2 / 15.8)
    assert not busy["counts"]
    assert busy["why_not"] == "machine 80% busy"
    assert busy["error"] == calm["error"]


def test_within_means_latency_and_both_scores() -> None:
    """One of them off is enough."""
    near = {"mean": 0.04, "availability": -0.01, "performance": 0.02}
    assert is_within(near)
    assert not is_within(near | {"mean": -0.06})
    assert not is_within(near | {"availability": -0.03})
    assert not is_within(near | {"mean": None})


def test_more_requests_than_a_run_may_have_are_refused_beforehand() -> None:
    """The text names the limit."""
    long = dataclasses.replace(PLAN, seconds=600.0, time_scale=1.0)
    assert "200000" in problem_of(long, 9_000.0)
    assert not problem_of(PLAN, 800.0)


def test_a_run_of_hardly_any_request_is_refused_beforehand() -> None:
    """It could say nothing, and where none comes there is nothing to say it of."""
    short = dataclasses.replace(PLAN, devices=1, seconds=10.0, time_scale=5.0, seeds=3)
    said = problem_of(short, 0.5)
    assert said.startswith("a run of 10 s here has ")
    assert said.endswith(f"needs {LEAST_REQUESTS}: give more --seconds or a higher load")
    assert not problem_of(short, 50.0)


def test_a_mesh_that_answers_nothing_is_told_as_such() -> None:
    """No latency, in JSON that is JSON, in the table, in the verdict and in the plot."""
    run = live_run()
    run.measured.records.columns["status"][:] = FAILED
    found = point(PLAN, run, live(live_run()))
    assert (found["live"]["mean_s"], found["error"]["mean"]) == (None, None)
    assert (found["live"]["availability"], found["within"]) == (0.0, False)
    json.dumps(found, allow_nan=False)
    assert live_table([found]).rows[0][2].startswith("-\n")
    assert verdict([found]).startswith("0 of 1 runs")
    assert live_figure([found], "small", "large").axes
