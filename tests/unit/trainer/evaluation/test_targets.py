"""Targets are judged as they say: met, missed, or not judged, and why."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.trainer.evaluation.subjects import headline_report, result
from trainer.evaluation.headlines import headlines
from trainer.evaluation.regret import gap_rows
from trainer.evaluation.studies import done
from trainer.evaluation.windows import (
    window_bound_hold_rows,
)


@pytest.mark.parametrize("missing_twin", [False, True])
def test_regret_is_judged_twice_over_all_points_and_where_small_copes(missing_twin: bool) -> None:
    """Each by its own rows; a zeroed twin that removes as much is a miss."""

    def row(policy: str, removed: float) -> dict[str, Any]:
        return {"policy": policy, "safety_net": True, "family": "bursty", "points": 3,
                "removed": removed, "removed_ci95": [removed, removed]}  # fmt: skip

    twin = [] if missing_twin else [row("dqn, zeroed", 0.0)]
    report = {
        **headline_report(0.99),
        "regret": [row("dqn", 0.1), *twin],
        "regret_where_small_copes": [row("dqn", 0.3), *twin],
    }
    found = {r["name"]: r for r in headlines(report, "dqn", "static-large", "static-small")}
    everywhere = found["regret removed, bursty"]["met"]
    coping = found["regret removed, bursty, where always-small copes"]["met"]
    assert (everywhere, coping) == ((None, None) if missing_twin else (False, True))
    assert found["regret removed, loss, where always-small copes"]["met"] is None


@pytest.mark.parametrize(
    ("shares", "said"),
    [((1.0, 0.8), "bound 1.50)"), ((0.8, 0.7), "bound 0.00, the goal is beyond it")],
)
def test_miss_is_told_from_an_impossibility(shares: tuple[float, float], said: str) -> None:
    """The load at which the bound itself keeps 90 % of windows stands beside the policies'."""
    bounds = [
        {"workload": "cv8", "load": load, "above_96": share, "above_98": share}
        for load, share in zip((1.0, 2.0), shares, strict=True)
    ]
    row = {"workload": "cv8", "safety_net": True, "level": 0.96, "open_end": False}
    loads = [{**row, "policy": "dqn", "load": 0.6}, {**row, "policy": "static-large", "load": 0.5}]
    report = {
        **headline_report(0.99),
        "window_loads": loads,
        "window_bound_loads": window_bound_hold_rows(bounds),
        "not_baselines": ["dqn"],
    }
    found = {r["name"]: r for r in headlines(report, "dqn", "static-large", "static-small")}
    judged = found["unpredictable workloads, windows above 0.96"]
    assert judged["met"] is False
    assert said in judged["detail"]


@pytest.mark.parametrize(("share", "met"), [(0.99, True), (0.955, False)])
def test_headlines_say_met_and_missed(share: float, met: bool) -> None:
    """The share of the bound decides its own target."""
    rows = {
        row["name"]: row
        for row in headlines(headline_report(share), "dqn", "static-large", "static-small")
    }
    assert rows["share of the bound"]["met"] is met
    assert rows["share of the bound"]["value"] == pytest.approx(share)


@pytest.mark.parametrize(("varies", "met"), [(False, False), (True, None)])
def test_a_lucky_run_above_the_bound_is_not_judged(varies: bool, met: bool | None) -> None:
    """Where iterations vary, the bound does not cover what luck earns."""
    report = {**headline_report(0.99), "violations": [{}], "iterations_vary": varies}
    first = headlines(report, "dqn", "static-large", "static-small")[0]
    assert (first["name"], first["value"], first["met"]) == ("no policy above the bound", 1, met)


@pytest.mark.parametrize(("scores", "met"), [((0.9, 0.8), True), ((0.89, 0.79), False)])
def test_below_the_best_baseline_beyond_the_paired_interval_is_missed(
    scores: tuple[float, float], met: bool
) -> None:
    """Two seeds, one harder for all: 0.01 below in both is a loss, however far seeds differ."""
    results = [
        result(
            "poisson", seed, {"price": 0.9 - 0.1 * seed, "dqn": own, "other": 1.0, "random": 0.1}
        )
        for seed, own in enumerate(scores)
    ]
    (row,) = gap_rows(results, "dqn", ["other"])
    assert row["best_baseline"] == "price"
    assert row["gap"] == pytest.approx(scores[0] - 0.9)
    report = {**headline_report(0.97), "beside_baselines": [row]}
    rows = {r["name"]: r for r in headlines(report, "dqn", "static-large", "static-small")}
    assert rows["beside the best baseline"]["met"] is met


def test_one_seed_is_not_judged_by_an_interval() -> None:
    """A single difference may be luck: nobody is called beaten, and nobody unbeaten."""
    (row,) = gap_rows([result("poisson", 1, {"price": 0.9, "dqn": 0.8})], "dqn", [])
    report = {**headline_report(0.97), "beside_baselines": [row]}
    rows = {r["name"]: r for r in headlines(report, "dqn", "static-large", "static-small")}
    found = rows["beside the best baseline"]
    assert (found["met"], found["value"]) == (None, pytest.approx(-0.1))
    assert "not judged: " in found["detail"]
    assert "one seed, no interval" in found["detail"]


def test_headlines_without_a_learned_policy_are_not_judged() -> None:
    """Nothing is counted as met that was not run."""
    rows = headlines(headline_report(0.99), "", "static-large", "static-small")
    assert {row["met"] for row in rows if row["name"] != "no policy above the bound"} == {None}


@pytest.mark.parametrize(("share", "met"), [(0.98, True), (0.96, None)])
def test_near_the_bound_is_near_any_retrained_policy(share: float, met: bool | None) -> None:
    """Within 3 % of the bound is within 3 % of whatever retraining gives; else nothing is said."""
    row = {
        "policy": "dqn",
        "safety_net": True,
        "shift": "mix",
        "family": "task",
        "load": 2.0,
        "availability": 1.0,
        "performance": share,
        "bound_share": share,
    }
    report = {**headline_report(0.99), "shifts": [row, {**row, "policy": "static-small"}]}
    rows = {each["name"]: each for each in headlines(report, "dqn", "static-large", "static-small")}
    assert rows["performance under shifts"]["met"] is met


@pytest.mark.parametrize(
    ("ratios", "shift", "met"),
    [((0.98, 1.01), "mix", True), ((0.98, 0.96), "mix", False), ((0.98, 1.01), "loss", None)],
)
def test_retrained_policies_decide_where_they_are_known(
    ratios: tuple[float, float], shift: str, met: bool | None
) -> None:
    """Every point within 3 % is met, one beyond is missed, a shift not retrained for is open."""
    own = {"policy": "dqn", "safety_net": True, "family": "", "availability": 1.0,
           "performance": 0.9, "bound_share": 0.9, "load": 1.0}  # fmt: skip
    shifts = [{**own, "shift": shift}, {**own, "shift": shift, "policy": "static-small"}]
    rows = [
        {"shift": "mix", "load": i, "safety_net": True, "ratio": r, "ratio_ci95": [r, r]}
        for i, r in enumerate(ratios)
    ]
    study = {**done(rows), "training": [{"kept": "retrained"}]}
    report = {**headline_report(0.99), "shifts": shifts, "retrained": study}
    found = {r["name"]: r for r in headlines(report, "dqn", "static-large", "static-small")}
    assert found["performance under shifts"]["met"] is met
    assert found["performance under shifts"]["value"] == min(ratios)


@pytest.mark.parametrize(("small", "met"), [(0.99, False), (0.5, None)])
def test_overload_nobody_copes_with_is_judged_apart(small: float, met: bool | None) -> None:
    """A missed availability counts against the policy where always-small has it, and only there."""
    row = {
        "policy": "dqn",
        "safety_net": True,
        "shift": "markov",
        "family": "bursty",
        "load": 20.0,
        "availability": 0.9,
        "performance": 0.7,
        "bound_share": 0.9,
    }
    other = {**row, "policy": "static-small", "availability": small}
    report = {**headline_report(0.99), "shifts": [row, other]}
    rows = {r["name"]: r for r in headlines(report, "dqn", "static-large", "static-small")}
    assert rows["availability under shifts"]["met"] is False
    assert rows["availability under shifts, where always-small copes"]["met"] is met
