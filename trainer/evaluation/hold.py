"""The highest rate a policy holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trainer.evaluation.setting import HOLDS, Setting
from trainer.simulation.simulate import PolicySpec, simulate
from trainer.simulation.workload import poisson


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
    config = setting.config(safety=safety)

    def holds(rate_rps: float) -> bool:
        values = []
        for seed in seeds:
            rng = np.random.default_rng([seed, 8])
            arrival_N = poisson(rate_rps, duration_s, rng)
            workload = setting.workload(arrival_N, duration_s, rng)
            values.append(simulate(config, workload, policy, seed).availability(1.0))
        return float(np.mean(values)) >= HOLDS

    low, high = low_rps, high_rps
    while high / low > 1.0 + tolerance:
        middle = math.sqrt(low * high)
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
