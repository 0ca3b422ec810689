"""What is taken off rewards: what a task earns anyway, and what the features promised.

A task's mean reward is taken off before returns are formed.

What one decision changes is small (0.05 to 0.2 of one request's quality) against a sum over the
hundreds of requests its deadline spans. A baseline that depends on nothing the decision can change
leaves every difference between actions as it is, and takes most of the noise away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class RewardBaseline:
    """Mean reward per task, exponentially weighted over requests of that task."""

    def __init__(self, weight: float = 0.01) -> None:
        """Starts empty; each reward moves its task's mean by `weight` (0 to 1)."""
        self._weight = weight
        self._mean: dict[str, float] = {}
        self._count: dict[str, int] = {}

    def observe(self, task: str, reward: float) -> float:
        """Takes in a reward and returns the baseline that held before it."""
        count = self._count.get(task, 0)
        before = self._mean.get(task, reward)
        # A plain mean until it is as slow as the weight says: no bias towards the first reward.
        weight = max(self._weight, 1.0 / (count + 1))
        self._mean[task] = before + weight * (reward - before)
        self._count[task] = count + 1
        return before

    def get_state(self) -> dict[str, tuple[float, int]]:
        """Returns mean and count per task."""
        return {task: (self._mean[task], self._count[task]) for task in self._mean}

    def set_state(self, state: Mapping[str, Sequence[float]]) -> None:
        """Restores what `get_state` returned; raises TypeError or ValueError for anything else."""
        pairs = {task: (mean, count) for task, (mean, count) in dict(state).items()}
        if not all(math.isfinite(mean) and type(count) is int for mean, count in pairs.values()):
            raise ValueError("saved baseline does not fit")
        self._mean = {task: float(mean) for task, (mean, _) in pairs.items()}
        self._count = {task: max(0, int(count)) for task, (_, count) in pairs.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What features promise of a decision's own reward: quality times P(on time).

    Attributes:
        quality_column: column of the quality, 0 to 1.
        on_time_column: column of the probability of an answer on time, 0 to 1.
        miss_cost: what a miss costs beside its reward of zero, in training as well.
    """

    quality_column: int
    on_time_column: int
    miss_cost: float = 0.3

    def shortfalls(
        self, x_NF: NDArray[np.float32], reward_N: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Returns by how much decisions fell short of the promise, <= 0; misses cost on both sides.

        One that kept its promise tells nothing: P(on time) is cautious, and the start network knows
        it. With both signs a run in a world of another task mix lost a sixth of its performance.

        Args:
            x_NF: features of the candidates chosen.
            reward_N: what they earned; 0 is a miss.
        """
        on_time_N = x_NF[:, self.on_time_column].astype(np.float64)
        earned_N = reward_N - self.miss_cost * (reward_N <= 0.0)
        promised_N = x_NF[:, self.quality_column] * on_time_N - self.miss_cost * (1.0 - on_time_N)
        shortfall_N: NDArray[np.float32] = np.minimum(earned_N - promised_N, 0.0).astype(np.float32)
        return shortfall_N
