"""The demo's parts: plan, capacity search, series, report."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from router.profile import TierProfile
from services.cli.demo import result_table
from services.cli.output import console
from services.demo.capacity import CapacityProbe, bounds, find_capacity, profile_rate_rps
from services.demo.plan import PHASES, DemoPlan
from services.demo.replay import PolicyRun
from services.demo.report import PHASE_KEYS, write_report
from services.demo.series import make_series
from services.loadgen.records import COLUMNS, RunRecords, run_summary

TIERS = ("small", "medium", "large")
PLAN = DemoPlan(calm_s=2, burst_s=3, recovery_s=2)


def records(seed: int = 0, *, lag_s: float = 0.001) -> RunRecords:
    """A made-up run with every kind of ending in every phase."""
    rng = np.random.default_rng(seed)
    count = 400
    intended = np.sort(rng.uniform(0, PLAN.run_s, count))
    status = rng.integers(0, 5, count)
    answered = status < 2
    values: dict[str, Any] = {
        "intended_s": intended,
        "status": status,
        "latency_s": rng.uniform(0.05, 0.6, count),
        "phase": np.digitize(intended, [2, 5]),
        "tier": np.where(answered, rng.integers(0, 2, count), -1),
        "quality": np.where(answered, 0.8, np.nan),
        "exact": np.where(answered, 1.0, np.nan),
        "answered": answered,
        "reason": np.where(status == 2, 0, -1),
        "lag_s": lag_s,
    }
    columns = {
        name: np.broadcast_to(np.array(values.get(name, 0), dtype), (count,)).copy()
        for name, dtype in COLUMNS.items()
    }
    names = {
        "phase": PHASES,
        "task": ("sort",),
        "tier": ("large", "small"),
        "endpoint": ("e",),
        "policy_version": ("v",),
        "reason": ("DEADLINE_NOT_REACHABLE",),
    }
    return RunRecords(columns, names, {"deadline_s": 0.4, "duration_s": PLAN.run_s})


def run_of(policy: str, made: RunRecords) -> PolicyRun:
    """A replay with these records."""
    return PolicyRun(policy, f"{policy}@1", made, run_summary(made), repeated=False)


def facts() -> dict[str, Any]:
    """Everything of a report but its policies."""
    score = {"quality": 1.0, "raw": 0.9, "low95": 0.8, "high95": 0.95, "examples": 100}
    tier = {
        "step_s": 0.001,
        "per_sequence_s": 0.001,
        "per_prompt_token_s": 1e-5,
        "overhead_s": 0.001,
        "max_batch": 4,
        "unloaded_p50_s": 0.02,
        "unloaded_p95_s": 0.03,
        "median_error": 0.05,
        "mean_error": 0.01,
        "sample_count": 100,
    }
    return {
        "quality": {"sort": dict.fromkeys(TIERS, score)},
        "machine": {"cpu": "<a & b>", "cores": 2},
        "versions": {"tiercel": "0.1.0"},
        "deadline_s": 0.4,
        "static_large_capacity_rps": 20.0,
        "burst_rps": 62.0,
        "seed": 1,
        "trace_id": "0" * 32,
        "phases": PLAN.phases(20.0),
        "capacity_probes": [{"rate_rps": 20.0, "availability": 1.0}],
        "calibration": {"took_s": 1.0, "tiers": dict.fromkeys(TIERS, tier), "pairs": []},
        "kind": "reference",
        "notes": ["<b>a note</b>"],
        "took_s": 12.0,
    }


def test_the_burst_is_at_least_three_times_the_capacity() -> None:
    """Rates follow from the capacity, the deadline from the unloaded latency."""
    phases = DemoPlan().phases(20.0)
    assert [phase["name"] for phase in phases] == list(PHASES)
    assert float(phases[1]["rate_rps"]) >= 60.0
    assert float(phases[0]["rate_rps"]) < 20.0
    assert DemoPlan().deadline_s(0.04, 0.0501) == 0.2
    assert DemoPlan().deadline_s(0.04, 0.6) == 0.24


@pytest.mark.parametrize("truth_rps", [3.0, 17.0, 40.0])
async def test_the_search_ends_close_below_the_true_capacity(truth_rps: float) -> None:
    """The rate found held, and is within the step that ends the search."""

    async def probe(rate_rps: float) -> float:
        return 1.0 if rate_rps <= truth_rps else 0.8

    probes = await find_capacity(probe, 20.0, 16)
    held, failed = bounds(probes)
    assert held <= truth_rps < failed
    assert held >= truth_rps / 1.1


def test_luck_above_a_failure_does_not_count() -> None:
    """A rate that held above one that failed is left out."""
    probes = [CapacityProbe(10, 1.0), CapacityProbe(12, 0.9), CapacityProbe(14, 1.0)]
    assert bounds(probes) == (10, 12)
    assert bounds([CapacityProbe(10, 0.5)]) == (0.0, 10)


def test_a_full_batch_carries_what_the_profile_says() -> None:
    """Requests per second from the cost per request."""
    profile = TierProfile(0.004, 0.001, 0.0001, max_batch=4)
    assert profile_rate_rps(profile, 20, 8) == pytest.approx(1 / (8 * 0.002 + 0.002))


def test_series_count_every_request_once() -> None:
    """Bins add up to the run."""
    made = records()
    series = make_series(made, TIERS, bin_s=0.5)
    assert series.offered_rps.sum() * 0.5 == len(made)
    assert series.on_time_rps.sum() * 0.5 == run_summary(made)["total"]["on_time"]
    answered = sum(rates.sum() for rates in series.mix.values()) * 0.5
    assert answered == made.columns["answered"].sum()
    assert series.mix["medium"].sum() == 0
    assert np.nanmax(series.quality) == pytest.approx(0.8)


def test_the_report_has_the_keys_others_rely_on(tmp_path: pathlib.Path) -> None:
    """Every phase of every policy has exactly the named keys, all tiers, and a sum that holds."""
    runs = [run_of("static-large", records(1)), run_of("dqn", records(2))]
    write_report(tmp_path, facts(), runs, tiers=TIERS)
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["policies"]) == ["static-large", "dqn"]
    for policy in report["policies"].values():
        assert tuple(policy["phases"]) == PHASES
        for phase in policy["phases"].values():
            assert set(phase) == set(PHASE_KEYS)
            assert tuple(phase["mix"]) == TIERS
            ends = ("on_time", "late", "refused", "cancelled", "failed")
            assert sum(phase[end] for end in ends) == phase["offered"] > 0
    named = ("quality", "machine", "versions", "deadline_s", "static_large_capacity_rps")
    assert all(key in report for key in (*named, "burst_rps", "seed", "trace_id"))
    assert (tmp_path / "burst.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "burst.svg").read_text()


def test_the_page_stands_alone_and_escapes_what_it_shows(tmp_path: pathlib.Path) -> None:
    """Nothing is loaded from elsewhere, and no fact becomes markup."""
    lagging = run_of("price", records(3, lag_s=0.2))
    write_report(tmp_path, facts(), [run_of("greedy", records(2)), lagging], tiers=TIERS)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "src=" not in page
    assert "&lt;a &amp; b&gt;" in page
    assert "&lt;b&gt;a note&lt;/b&gt;" in page
    assert "generator lagged" in page


def test_an_empty_phase_is_reported_as_such(tmp_path: pathlib.Path) -> None:
    """A phase without requests has no shares instead of a division by zero."""
    made = records(1)
    calm_only = made.select(made.columns["phase"] == 0)
    report = write_report(tmp_path, facts(), [run_of("dqn", calm_only)], tiers=TIERS)
    burst = report["policies"]["dqn"]["phases"]["burst"]
    assert burst["offered"] == 0
    assert burst["availability"] is None
    assert "dqn" in (tmp_path / "report.html").read_text()


def test_the_final_table_shows_every_policy_and_phase(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nine columns of numbers and the mix, one row per phase."""
    report = write_report(tmp_path, facts(), [run_of("dqn", records(1))], tiers=TIERS)
    console().print(result_table(report))
    out = capsys.readouterr().out
    assert all(phase in out for phase in PHASES)
    assert "dqn" in out
