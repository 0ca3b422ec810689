"""What is made of the runs of a live proof."""

from __future__ import annotations

from typing import Any

import pytest

from services.bench.live_report import compare, show


def run_of(policy: str, seed: int, availability: float) -> dict[str, Any]:
    """One run in which everything on time was of quality 1."""
    total = {
        "availability": availability,
        "performance": availability,
        "p99_ms": 900.0,
        "refused": 2,
        "failed": 0,
        "mix": {"small": 1.0},
    }
    cores = {"router-inference-0": 0.25, "router-inference-1": 0.25, "triton": 0.5}
    facts = {"load": 1.0, "rate_rps": 1780.0, "time_scale": 10.0, "run_s": 25.0, "valid": True}
    return {
        **facts,
        "policy": policy,
        "seed": seed,
        "cores": cores,
        "machine_busy": 0.5,
        "total": total,
    }


def test_differences_are_taken_on_the_same_requests() -> None:
    """Turns that went badly for everybody do not widen the interval of a difference."""
    price = [run_of("price", seed, value) for seed, value in enumerate((0.9, 0.5, 0.7))]
    dqn = [run_of("dqn", seed, value) for seed, value in enumerate((0.91, 0.51, 0.71))]
    row = compare([*price, *reversed(dqn)], ("price", "dqn"), 1.0)["policies"]["dqn"]
    mean, half = row["availability_minus_price"]
    assert abs(mean - 0.01) < 1e-9
    assert half < 1e-9
    assert not row["availability_below_price"]
    assert row["cores"]["router-inference"] == row["cores"]["triton"] == 0.5


def test_below_means_below_beyond_the_interval() -> None:
    """A steady loss is told and stands in the table; one within the interval is not."""
    price = [run_of("price", seed, 0.9) for seed in range(3)]
    steady = [run_of("dqn", seed, value) for seed, value in enumerate((0.80, 0.81, 0.82))]
    noisy = [run_of("static-small", seed, value) for seed, value in enumerate((0.5, 0.9, 0.95))]
    policies = ("price", "dqn", "static-small")
    load = compare([*price, *steady, *noisy], policies, 1.0)
    assert load["policies"]["dqn"]["availability_below_price"]
    assert not load["policies"]["static-small"]["availability_below_price"]
    table = show({"loads": [load]})
    assert [line.count("**below**") for line in table.splitlines()[2:]] == [0, 1, 0]


def test_one_turn_proves_nothing() -> None:
    """Without a second turn there is no interval, so none is shown and nobody is called below."""
    runs = [run_of("price", 0, 0.9), run_of("dqn", 0, 0.2)]
    load = compare(runs, ("price", "dqn"), 1.0)
    row = load["policies"]["dqn"]
    assert not row["availability_below_price"]
    assert row["availability_minus_price"] == [pytest.approx(-0.7), None]
    assert "| -0.700 / -0.700 |" in show({"loads": [load]})


def test_a_policy_that_answered_nobody_stands_in_the_table() -> None:
    """It has no percentile; the proof goes on."""
    runs = [run_of(policy, seed, 0.0) for policy in ("price", "dqn") for seed in range(2)]
    for run in runs[2:]:
        run["total"]["p99_ms"] = None
    load = compare(runs, ("price", "dqn"), 1.0)
    assert [row["p99_ms"] for row in load["policies"].values()] == [900.0, None]
    assert "| - | 4 |" in show({"loads": [load]}).splitlines()[-1]
