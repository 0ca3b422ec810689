"""Sweeps of load, policies side by side on the same requests.

Shape letters: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.evaluation.fluid import fluid_reference
from trainer.evaluation.scenarios import SCENARIOS
from trainer.evaluation.setting import Setting
from trainer.evaluation.statistics import Interval, interval
from trainer.simulation.simulate import PolicySpec, SimulationConfig, SimulationResult, simulate


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One policy at one rate.

    Attributes:
        policy: name.
        rate_rps: offered rate.
        availability: share answered on time.
        performance: mean reward.
        reference: performance of the fluid reference at the rate.
        p50_s: median latency of answered requests, seconds.
        p99_s: 99th percentile, seconds.
        tier_share: share of offered requests answered per tier.
    """

    policy: str
    rate_rps: float
    availability: Interval
    performance: Interval
    reference: float
    p50_s: float
    p99_s: float
    tier_share: tuple[float, ...]

    @property
    def share(self) -> float:
        """Performance as a share of the fluid reference."""
        return self.performance.mean / self.reference if self.reference > 0 else 0.0


def sweep(
    setting: Setting,
    policies: Mapping[str, PolicySpec],
    rates_rps: Sequence[float],
    seeds: Sequence[int],
    *,
    duration_s: float = 12.0,
    warm_up_s: float = 1.0,
    scenario: str = "poisson",
    safety: bool = True,
    config: SimulationConfig | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[SweepRow]:
    """Runs every policy at every rate over the same workloads (one per rate and seed).

    Args:
        setting: fleet, tasks, deadline.
        policies: policies by name.
        rates_rps: mean rates.
        seeds: one workload each; never those used in training.
        duration_s: length of a run, seconds.
        warm_up_s: left out at the start, seconds.
        scenario: name in SCENARIOS.
        safety: safety net on or off; ignored if `config` is given.
        config: another config (routers, events) instead of the setting's own.
        progress: told one line per rate.
    """
    base = config or setting.config(safety=safety)
    rows: list[SweepRow] = []
    for rate_rps in rates_rps:
        reference = fluid_reference(setting, rate_rps)
        results: dict[str, list[SimulationResult]] = {name: [] for name in policies}
        for seed in seeds:
            rng = np.random.default_rng([seed, 7])
            arrival_N = SCENARIOS[scenario].make(rate_rps, duration_s, rng)
            workload = setting.workload(arrival_N, duration_s, rng)
            for name, policy in policies.items():
                results[name].append(simulate(base, workload, policy, seed))
        for name, runs in results.items():
            rows.append(_row(name, rate_rps, runs, reference, warm_up_s, len(setting.fleet.tiers)))
        if progress is not None:
            progress(f"{setting.name} {scenario} {rate_rps:g} req/s")
    return rows


def _row(
    name: str,
    rate_rps: float,
    runs: Sequence[SimulationResult],
    reference: float,
    warm_up_s: float,
    tier_count: int,
) -> SweepRow:
    answered = [run.latency_N[run.quality_N > 0] for run in runs]
    latency = np.concatenate(answered) if answered else np.zeros(0)
    quantiles = np.quantile(latency, [0.5, 0.99]) if len(latency) else (math.nan, math.nan)
    share_ST = np.array([run.tier_share(tier_count, warm_up_s) for run in runs])
    return SweepRow(
        name,
        rate_rps,
        interval(run.availability(warm_up_s) for run in runs),
        interval(run.performance(warm_up_s) for run in runs),
        reference,
        float(quantiles[0]),
        float(quantiles[1]),
        tuple(float(share) for share in share_ST.mean(axis=0)),
    )
