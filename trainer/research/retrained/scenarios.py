"""Scenarios of one shift alone: what a policy is retrained on, and what it is chosen by.

No stream of these is one of the evaluation's (`trainer/evaluation/seeds.py`): training draws from a
seed of one word, validation from seeds of two.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.evaluation.plan import Plan
from trainer.evaluation.scenarios import SCENARIOS
from trainer.evaluation.shifts import Shift, shift_case
from trainer.simulation.scenarios import Mesh, Scenario
from trainer.simulation.setting import Setting

VALIDATION_SEEDS = (700_001, 700_002, 700_003, 700_004)
_VALIDATION_WORD = 300
"""Second word of the seeds of validation streams; those of other trainings are smaller."""
SHORTEST_S = 6.0
"""Shortest training episode: a few changes of the Markov-modulated rate, and time for a backlog."""
VALIDATION_REQUESTS = 4000


@dataclass(frozen=True)
class ShiftScenarios:
    """Draws episodes of one shift, as a `policy_iteration.ScenarioSource`.

    Attributes:
        shift: the shift.
        setting: the setting it runs in.
        low_rps: lowest rate.
        high_rps: highest rate.
    """

    shift: Shift
    setting: Setting
    low_rps: float
    high_rps: float

    def __call__(self, mesh: Mesh, rng: np.random.Generator, request_count: int) -> Scenario:
        """Returns an episode at a random rate, even in its logarithm, safety net on or off."""
        del mesh  # the shift has a setting of its own
        low, high = math.log(self.low_rps), math.log(self.high_rps)
        rate_rps = float(np.exp(rng.uniform(low, high)))
        safety = bool(rng.random() < 0.5)
        return self.at(rate_rps, request_count, rng, safety=safety)

    def at(
        self, rate_rps: float, request_count: int, rng: np.random.Generator, *, safety: bool
    ) -> Scenario:
        """Returns an episode at a rate, of about so many requests."""
        duration_s = max(request_count / rate_rps, SHORTEST_S)
        arrival_N = SCENARIOS[self.shift.scenario].make(rate_rps, duration_s, rng)
        workload = self.setting.workload(arrival_N, duration_s, rng)
        case = shift_case(self.shift, rate_rps, duration_s, (), seed=0, unit_rps=1.0)
        config = case.config(self.setting, safety=safety)
        return Scenario(config, workload, int(rng.integers(2**31)))

    def validation(self, shares: Sequence[float], small_rps: float) -> list[Scenario]:
        """Returns fixed episodes at shares of what always-small holds, safety net on."""
        return [
            self.at(
                share * small_rps,
                VALIDATION_REQUESTS,
                np.random.default_rng([seed, _VALIDATION_WORD + index]),
                safety=True,
            )
            for seed in VALIDATION_SEEDS
            for index, share in enumerate(shares)
        ]


def shift_scenarios(shift: Shift, setting: Setting, plan: Plan, small_rps: float) -> ShiftScenarios:
    """Returns the episodes of a shift over the rates at which it is evaluated.

    Args:
        shift: the shift.
        setting: the setting it runs in.
        plan: its shares of `small_rps`.
        small_rps: what always-small holds on the shift's hardware.
    """
    shares = plan.shift_shares
    return ShiftScenarios(shift, setting, min(shares) * small_rps, max(shares) * small_rps)


def training_seed(seed: int, shift: str) -> int:
    """Returns the seed of a shift's training: another one for each shift."""
    return zlib.crc32(f"{seed}/{shift}".encode())
