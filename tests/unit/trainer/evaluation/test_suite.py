"""The whole protocol on a small subject: what the report holds, and that it is reproducible."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.trainer.evaluation import subjects
from trainer.evaluation.rates import EvaluationError
from trainer.evaluation.suite import Subject, run_suite

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """The protocol's results, computed in this process."""
    return run_suite(subjects.subject(), subjects.PLAN)


def test_results_are_the_same_whatever_the_number_of_workers(report: dict[str, Any]) -> None:
    """Two spawned workers find every number that one process finds."""
    assert run_suite(subjects.subject(), subjects.PLAN, workers=2) == report


def test_report_is_plain_json(report: dict[str, Any]) -> None:
    """Nothing in it needs more than JSON, and no number is NaN."""
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_sweep_has_every_policy_load_and_net_with_intervals(report: dict[str, Any]) -> None:
    """One row each, hard deadlines, with the columns readers rely on."""
    rows = report["sweep"]
    main = [name for name, each in subjects.contenders().items() if each.kind != "zeroed"]
    keys = {(row["policy"], row["load"], row["safety_net"]) for row in rows}
    assert keys == {(n, load, net) for n in main for load in (0.5, 4.0) for net in (False, True)}
    assert len(rows) == len(keys)
    for row in rows:
        assert row["rate_rps"] == pytest.approx(row["load"] * report["load_unit"]["rate_rps"], 1e-3)
        for column in ("availability", "performance", "bound", "bound_share"):
            low, high = row[f"{column}_ci95"]
            assert low <= row[column] <= high


def test_no_policy_is_above_the_bound(report: dict[str, Any]) -> None:
    """Regret is never negative, and no run is listed as a violation."""
    assert report["violations"] == []
    assert report["iterations_vary"] is False
    assert all(row["regret"] >= -1e-9 for row in report["sweep"] + report["shifts"])


def test_no_policy_keeps_more_windows_than_the_bound_allows(report: dict[str, Any]) -> None:
    """With one seed's windows bounded, nobody has more of them above a level than is possible."""
    most = {(row["workload"], row["load"]): row["above_96"] for row in report["window_bounds"]}
    assert set(most) == {("gamma-cv4", load) for load in subjects.PLAN.window_loads}
    assert all(0.0 <= share <= 1.0 for share in most.values())
    assert most["gamma-cv4", 0.5] >= most["gamma-cv4", 2.0]


def test_static_large_holds_load_one_and_not_four(report: dict[str, Any]) -> None:
    """The unit of load is its own limit."""
    rows = {(row["load"], row["policy"]): row for row in report["sweep"] if not row["safety_net"]}
    assert rows[0.5, "static-large"]["availability"] > 0.99
    assert rows[4.0, "static-large"]["availability"] < 0.5
    ratio = next(r for r in report["load_ratio"] if r["policy"] == "static-small")
    assert ratio["load"] > 4.0
    assert ratio["held_in_sweep"] == 4.0


def test_shifts_name_their_family_and_stay_below_always_small(report: dict[str, Any]) -> None:
    """Every shift of the protocol is there, at the share of its own hardware's limit."""
    shifts = {row["shift"] for row in report["shifts"]}
    assert {"task easy", "task hard", "mix reversed", "one device lost"} < shifts
    assert {"latency +30 %, not known", "2 routers, stale", "4 routers, stale"} < shifts
    assert {row["share_of_always_small"] for row in report["shifts"]} == {0.1}


def test_more_load_needs_more_static_gpus(report: dict[str, Any]) -> None:
    """To equal price, static-large needs more GPUs the higher the load is."""
    rows = [r for r in report["per_gpu"] if r["policy"] == "price" and r["safety_net"]]
    low, high = sorted(rows, key=lambda row: row["load"])
    assert low["static_large_devices"] < high["static_large_devices"]


def test_zeroed_twin_of_a_zero_network_removes_what_the_network_does(
    report: dict[str, Any],
) -> None:
    """A network that has learned nothing and its zeroed twin are the same policy."""
    removed = {
        (row["family"], row["safety_net"], row["policy"]): row["removed"]
        for row in report["regret"]
    }
    for (family, net, policy), value in removed.items():
        if policy == "dqn":
            assert removed[family, net, "dqn, zeroed"] == value
        if policy == "price":
            assert value == 0.0


def test_deadline_nobody_can_make_is_an_error_that_says_so() -> None:
    """Without a rate that static-large holds there is nothing to measure loads by."""
    short = subjects.setting(deadline_s=0.001)
    with pytest.raises(EvaluationError, match="longer deadline"):
        run_suite(Subject(short, subjects.contenders(), "dqn"), subjects.PLAN)
