"""The fluid reference: what the best steady mix of tiers would earn at a rate. Not a bound.

Shape letters: K tasks, T tiers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from trainer.evaluation.jobs import Context
from trainer.simulation.setting import Setting


def fluid_reference(setting: Setting, rate_rps: float, grid: int = 16) -> float:
    """Returns the performance of the best steady fluid mix at a rate. A reference, not a bound.

    All devices hold one set A of active tiers and one cycle time T; requests have mean lengths
    (prompt p, output o). A request needs o cycles, so T <= deadline / o (its own prompt taken
    off). Per cycle a device receives (rate / devices) T requests. With x_kt the share of task k
    sent to tier t in A, w_k the task shares:

        maximise    sum_kt w_k q_kt x_kt
        subject to  sum_{t in A} step_t + (rate T / devices) sum_kt w_k x_kt
                      (prompt_t p + sequence_t o) <= T                        (device time)
                    (rate T / devices) o sum_k w_k x_kt <= batch_t            (batch limit)
                    sum_t x_kt <= 1, x >= 0

    For a given T this is a linear program; A runs over all sets of tiers and T over a grid, refined
    around its best point. Devices with different sets, or knowing each request's lengths, can do
    better, hence no bound.
    """
    profile = setting.profiles[""]
    tiers = [profile.tiers[tier] for tier in setting.catalog.tiers]
    prompt = setting.lengths.prompt_mean
    best = 0.0
    for size in range(1, len(tiers) + 1):
        for chosen in itertools.combinations(range(len(tiers)), size):
            steps_s = sum(tiers[t].step_s for t in chosen)
            prompt_s = max(tiers[t].per_prompt_token_s for t in chosen) * prompt
            low_s = steps_s * 1.02
            high_s = (setting.deadline_s - prompt_s) / setting.lengths.output_mean
            if high_s <= low_s:
                continue
            for _ in range(2):
                cycles_s = np.geomspace(low_s, high_s, grid)
                values = [
                    _fluid_program(setting, chosen, rate_rps, float(cycle_s), prompt)
                    for cycle_s in cycles_s
                ]
                top = int(np.argmax(values))
                best = max(best, values[top])
                low_s, high_s = cycles_s[max(0, top - 1)], cycles_s[min(grid - 1, top + 1)]
                if values[top] <= best - 0.02:
                    break  # this set of tiers is out of the race
    return best


def _fluid_program(
    setting: Setting, chosen: tuple[int, ...], rate_rps: float, cycle_s: float, prompt: float
) -> float:
    """Returns the optimum of the linear program for one set of tiers and one cycle time."""
    profile = setting.profiles[""]
    tiers = [profile.tiers[setting.catalog.tiers[t]] for t in chosen]
    output = setting.lengths.output_mean
    w_K = np.asarray(setting.shares) / np.sum(setting.shares)
    quality_KT = setting.catalog.quality_KT[:, chosen]
    tasks, count = quality_KT.shape
    per_cycle = rate_rps * cycle_s / len(setting.fleet.devices)
    time_T = np.array([t.per_prompt_token_s * prompt + t.per_sequence_s * output for t in tiers])
    rows = [per_cycle * (w_K[:, None] * time_T).ravel()]
    limits = [cycle_s - sum(tier.step_s for tier in tiers)]
    for t, tier in enumerate(tiers):
        row_KT = np.zeros((tasks, count))
        row_KT[:, t] = per_cycle * output * w_K
        rows.append(row_KT.ravel())
        limits.append(float(tier.max_batch))
    for k in range(tasks):
        row_KT = np.zeros((tasks, count))
        row_KT[k] = 1.0
        rows.append(row_KT.ravel())
        limits.append(1.0)
    gain = (w_K[:, None] * quality_KT).ravel()
    solution = linprog(-gain, A_ub=np.array(rows), b_ub=limits, bounds=(0.0, 1.0), method="highs")
    return float(-solution.fun) if solution.success else 0.0


@dataclass(frozen=True)
class FluidJob:
    """Works out the fluid reference of the nominal setting at one rate."""

    rate_rps: float

    @property
    def cost(self) -> float:
        """As many simulated requests as take about the time of its linear programs."""
        return 200_000.0

    def run(self, context: Context) -> float:
        """Returns the reference."""
        return fluid_reference(context.settings[""], self.rate_rps)
