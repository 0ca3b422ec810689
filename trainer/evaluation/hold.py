"""The highest rate a policy holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.evaluation.jobs import Context
from trainer.evaluation.seeds import stream
from trainer.simulation.setting import HOLDS, Setting
from trainer.simulation.simulate import PolicySpec, simulate
from trainer.simulation.workload import poisson

HIGHEST_RPS = 1e6
"""No rate beyond this is tried."""
FEWEST_REQUESTS = 4000
"""A run is long enough for this many: near saturation a backlog takes its time to show."""


def highest_held_rps(
    setting: Setting,
    policy: PolicySpec,
    *,
    low_rps: float,
    high_rps: float,
    seeds: Sequence[int],
    duration_s: float = 20.0,
    safety: bool = True,
    tolerance: float = 0.02,
) -> float:
    """Returns the highest Poisson rate at which a policy's mean availability is at least HOLDS.

    Bisection; availability is taken to fall with the rate. `low_rps` is returned if even that is
    not held.
    """
    low, high = low_rps, high_rps
    while high / low > 1.0 + tolerance:
        middle = math.sqrt(low * high)
        if holds(setting, policy, middle, seeds, duration_s, safety=safety):
            low = middle
        else:
            high = middle
    return low


def holds(
    setting: Setting,
    policy: PolicySpec,
    rate_rps: float,
    seeds: Sequence[int],
    duration_s: float,
    *,
    safety: bool,
) -> bool:
    """Returns whether a policy's mean availability at a Poisson rate is at least HOLDS.

    Runs are `duration_s` long, or as long as FEWEST_REQUESTS take.
    """
    config = setting.config(safety=safety)
    duration_s = max(duration_s, FEWEST_REQUESTS / rate_rps)
    values = []
    for seed in seeds:
        rng = stream(seed, f"hold/{rate_rps:.6g}")
        arrival_N = poisson(rate_rps, duration_s, rng)
        workload = setting.workload(arrival_N, duration_s, rng)
        values.append(simulate(config, workload, policy, seed).availability(1.0))
    return float(np.mean(values)) >= HOLDS


def bracket_rps(
    setting: Setting,
    policy: PolicySpec,
    start_rps: float,
    seeds: Sequence[int],
    duration_s: float,
    *,
    safety: bool,
) -> tuple[float, float]:
    """Returns a rate that is held and twice that rate, which is not; (0, 0) if none is held."""
    rate_rps = start_rps
    if holds(setting, policy, rate_rps, seeds, duration_s, safety=safety):
        while rate_rps < HIGHEST_RPS:
            if not holds(setting, policy, 2.0 * rate_rps, seeds, duration_s, safety=safety):
                break
            rate_rps *= 2.0
        return rate_rps, 2.0 * rate_rps
    while rate_rps > start_rps / 1024.0:
        rate_rps /= 2.0
        if holds(setting, policy, rate_rps, seeds, duration_s, safety=safety):
            return rate_rps, 2.0 * rate_rps
    return 0.0, 0.0


def first_rate_rps(setting: Setting, tier: str) -> float:
    """Returns a rate to start a search from: one request at a time on every device."""
    lengths = setting.lengths
    alone_s = (
        setting.profiles[""]
        .tiers[tier]
        .unloaded_latency_s(lengths.prompt_median, lengths.output_mean)
    )
    return len(setting.fleet.devices) / alone_s


@dataclass(frozen=True)
class HoldJob:
    """Finds the highest rate one policy holds in one setting.

    Attributes:
        policy: name in the context.
        safety: safety net on or off.
        seeds: evaluation seeds.
        duration_s: shortest run, seconds.
        start_rps: where the search for a bracket starts.
        high_rps: a rate known not to be held, so that `start_rps`, which is, and it are the
            bracket; 0: search for one.
        setting: name in the context.
        tolerance: width of the last bracket, as a share of the rate.
    """

    policy: str
    safety: bool
    seeds: tuple[int, ...]
    duration_s: float
    start_rps: float
    high_rps: float = 0.0
    setting: str = ""
    tolerance: float = 0.02

    @property
    def cost(self) -> float:
        """Simulated requests, about."""
        high = self.high_rps or 4.0 * self.start_rps
        steps = math.log2(math.log(high / self.start_rps) / self.tolerance + 1.0) + 1.0
        requests = max(self.start_rps * self.duration_s, FEWEST_REQUESTS)
        return requests * len(self.seeds) * steps

    def run(self, context: Context) -> float:
        """Returns the rate, requests per second; 0 if none is held."""
        setting, policy = context.settings[self.setting], context.policies[self.policy]
        low, high = self.start_rps, self.high_rps
        if high <= 0.0:
            low, high = bracket_rps(
                setting, policy, low, self.seeds, self.duration_s, safety=self.safety
            )
            if low <= 0.0:
                return 0.0
        return highest_held_rps(
            setting,
            policy,
            low_rps=low,
            high_rps=high,
            seeds=self.seeds,
            duration_s=self.duration_s,
            safety=self.safety,
            tolerance=self.tolerance,
        )
