"""Goodput under overload, with and without admission that learns; prints a Markdown table.

python -m tests.bench.bench_overload
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from router.catalog import parse_quality
from router.dqn.snapshot import load_snapshot
from router.features import SCHEMA
from router.policies.table import make_policy
from router.profile import parse_profile
from router.safety import SafetyLimits
from trainer.evaluation.scenarios import SCENARIOS
from trainer.simulation.setting import Setting, shared_fleet_setting
from trainer.simulation.simulate import PolicySpec, SimulationConfig, simulate
from trainer.simulation.workload import Workload, piecewise

ROOT = Path(__file__).parents[2]
CASES = (
    ("poisson", 1000.0), ("poisson", 3200.0), ("poisson", 4600.0), ("poisson", 5500.0),
    ("poisson", 7000.0), ("poisson", 10000.0), ("markov", 4160.0), ("square-wave", 4160.0),
    ("gamma-cv8", 500.0), ("gamma-cv8", 4160.0), ("step", 8000.0),
)  # fmt: skip
POLICIES = ("price", "static-small", "static-medium", "debt-queue", "dqn")
SMALL_HOLDS_RPS = 5_180.0
FIXED = SafetyLimits(pessimism=SafetyLimits().optimism)


def offered(setting: Setting, name: str, rate_rps: float, seed: int) -> Workload:
    """Returns the requests of a case."""
    rng = np.random.default_rng([seed, 7])
    duration_s = 10.0
    if name == "step":
        duration_s = 12.0
        arrival_N = piecewise([(4.0, 500.0), (3.0, rate_rps), (5.0, 500.0)], rng)
    else:
        arrival_N = SCENARIOS[name].make(rate_rps, duration_s, rng)
    return setting.workload(arrival_N, duration_s, rng)


def cell(config: SimulationConfig, workloads: list[Workload], spec: PolicySpec) -> str:
    """Returns performance / availability, means over the workloads."""
    results = [simulate(config, offer, spec, seed) for seed, offer in enumerate(workloads, 1)]
    performance = np.mean([result.performance(1.0) for result in results])
    availability = np.mean([result.availability(1.0) for result in results])
    return f"{performance:.3f} / {availability:.3f}"


def main() -> None:
    """Prints the table."""
    profile = parse_profile((ROOT / "profiles/opt-a100.toml").read_text(), "opt-a100")
    quality = parse_quality((ROOT / "quality/opt.toml").read_text(), "opt")
    setting = shared_fleet_setting("opt-a100", profile, quality)
    blob = (ROOT / "policies/opt-a100.safetensors").read_bytes()
    snapshot = load_snapshot(blob, SCHEMA, "opt-a100")
    learned = setting.config(safety=True)
    fixed = replace(learned, limits=FIXED)
    specs = []
    for name in POLICIES:
        more = {"snapshot": snapshot} if name == "dqn" else {}
        specs.append(PolicySpec.of(make_policy(name, setting.catalog, {}, **more)))
    heads = [f"{name} before | {name}" for name in POLICIES]
    print("| arrivals, requests/s | share | " + " | ".join(heads) + " |")
    print("|---" * (2 + 2 * len(POLICIES)) + "|")
    for case, rate_rps in CASES:
        offers = [offered(setting, case, rate_rps, seed) for seed in (1, 2)]
        share = min(1.0, SMALL_HOLDS_RPS / rate_rps)
        row = [f"{case} {rate_rps:,.0f}", f"{share:.2f}" if case == "poisson" else ""]
        for spec in specs:
            row += [cell(config, offers, spec) for config in (fixed, learned)]
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
