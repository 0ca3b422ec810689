"""A small subject and plan, and results and reports made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from router.catalog import parse_quality
from router.dqn.snapshot import zero_weights
from router.features import FEATURE_COUNT
from tests.unit.router import fleets
from trainer.evaluation import policies
from trainer.evaluation.cases import Case, CaseResult, Outcome
from trainer.evaluation.plan import Plan
from trainer.evaluation.policies import Contender
from trainer.evaluation.studies import not_run
from trainer.evaluation.suite import Subject
from trainer.simulation.setting import Setting, shared_fleet_setting
from trainer.simulation.simulate import PolicySpec
from trainer.simulation.workload import Lengths

QUALITY = parse_quality(
    'name = "test"\n[quality.easy]\nsmall = 0.8\nmedium = 0.95\nlarge = 1.0\n'
    "[quality.hard]\nsmall = 0.4\nmedium = 0.8\nlarge = 1.0\n",
    "test",
)
PLAN = Plan(
    name="tiny",
    seed_count=2,
    sweep_loads=(0.5, 4.0),
    soft_loads=(2.0,),
    window_loads=(0.5, 2.0),
    gpu_loads=(1.0, 4.0),
    shift_shares=(0.1,),
    requests=300,
    shortest_s=1.5,
    longest_s=3.0,
    windows_per_seed=1,
    trace_windows_per_seed=1,
    window_bound_seed_count=1,
    hold_seed_count=1,
    hold_s=2.0,
)


def setting(deadline_s: float = 0.4) -> Setting:
    """Returns two devices with three tiers."""
    return shared_fleet_setting(
        "test",
        fleets.profile(),
        QUALITY,
        device_count=2,
        deadline_s=deadline_s,
        lengths=Lengths(prompt_sigma=0.0),
    )


def contenders() -> dict[str, Contender]:
    """Returns the yardsticks and a learned policy that has learned nothing."""
    own = setting()
    found = {
        name: policies.baseline(name, own.catalog) for name in policies.yardsticks(own.catalog)
    }
    spec = PolicySpec.dqn(zero_weights(FEATURE_COUNT, 4))
    found |= {c.name: c for c in policies.with_zeroed(Contender("dqn", spec, "v", "learned"))}
    return found


def subject() -> Subject:
    """Returns the setting with its contenders."""
    return Subject(setting(), contenders(), "dqn", workloads=("gamma-cv4",))


def outcome(performance: float, windows: tuple[float, ...] = ()) -> Outcome:
    """Returns an outcome of which only performance and windows matter."""
    return Outcome(1.0, performance, 0.1, 0.2, 1.0, 1.0, np.zeros(3), np.array(windows))


def result(
    label: str, seed: int, performance: dict[str, float], bound: float | None = 1.0
) -> CaseResult:
    """Returns a result with the safety net on."""
    case = Case("shifts", label, 2.0, 100.0, seed, 5.0, tuple(performance))
    return CaseResult(case, {(n, True): outcome(p) for n, p in performance.items()}, bound)


def headline_report(share: float, availability: float = 1.0) -> dict[str, Any]:
    """Returns a report of one sweep row per policy and nothing else."""

    def row(policy: str, performance: float) -> dict[str, Any]:
        return {
            "policy": policy,
            "safety_net": True,
            "load": 1.0,
            "availability": availability,
            "performance": performance,
            "performance_ci95": [performance - 0.01, performance + 0.01],
            "bound": 1.0,
            "bound_share": performance,
        }

    empty: dict[str, Any] = {
        name: [] for name in ("load_ratio", "windows", "window_loads", "window_bound_loads",
                              "per_gpu", "shifts", "regret", "regret_where_small_copes",
                              "violations", "beside_baselines", "not_baselines")
    }  # fmt: skip
    empty |= {"retrained": not_run("none"), "iterations_vary": False}
    return {**empty, "sweep": [row("dqn", share), row("price", 0.97)]}
