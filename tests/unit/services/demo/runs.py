"""Made-up runs of a demo, for what is drawn and written from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from services.demo.plan import PHASES, DemoPlan
from services.demo.replay import PolicyRun
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
        "exact": np.where(answered, 1.0, 0.0),
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
        "static_large_devices": {
            "policy": "dqn",
            "performance": 0.8,
            "needed": 4,
            "most_tried": 11,
            "simulated_on_one": 0.21,
            "measured_on_one": 0.19,
        },
        "notes": ["<b>a note</b>"],
        "took_s": 12.0,
    }
