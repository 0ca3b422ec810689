"""The environment of the cross-check: the same for every learner, and the same test for all.

Everybody sees the Gymnasium environment and nothing else: one step is one decision, the reward is
what the requests that ended since the last decision earned. Peak performance would earn 1 per
request, so 1 per step is taken off: the same for every action, and values stay near zero.

Once an episode is over, what each request earned can be asked for: no library's loop does so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.seeds import entropy
from trainer.simulation.environment import Observation, RoutingEnvironment
from trainer.simulation.setting import Setting
from trainer.simulation.simulate import PolicySpec, SimulationConfig, simulate
from trainer.simulation.workload import Workload, poisson

SHORTEST_EPISODE_DEADLINES = 12.0
PEAK = 1.0
"""What a request earns at peak performance."""
Choose = Callable[[Observation, NDArray[np.int8]], int]
"""From observation and mask of allowed actions to an action."""


class CentredReward(gymnasium.RewardWrapper[Observation, np.int64]):
    """Takes off what a step earns at peak performance."""

    def reward(self, reward: Any) -> float:
        """Returns the reward less PEAK."""
        return float(reward) - PEAK

    def own_rewards(self, request_N: Sequence[int]) -> NDArray[np.float64]:
        """Returns what some requests of the episode have earned by now, less PEAK each."""
        environment = self.unwrapped
        assert isinstance(environment, RoutingEnvironment)
        rewards: NDArray[np.float64] = environment.result().first_reward_N[list(request_N)]
        return rewards - PEAK


@dataclass(frozen=True)
class Arena:
    """Where all learners train and are tested.

    Attributes:
        setting: fleet, tasks, costs, deadline.
        low_rps: lowest rate of an episode in training.
        high_rps: highest.
        episode_requests: requests of an episode, about; never shorter than a dozen deadlines.
        safety: safety net on; off, a bad decision shows in full.
    """

    setting: Setting
    low_rps: float
    high_rps: float
    episode_requests: int = 1500
    safety: bool = False

    @property
    def config(self) -> SimulationConfig:
        """What is simulated."""
        return self.setting.config(safety=self.safety)

    @property
    def mean_step_s(self) -> float:
        """Time of one decision at the mean rate of training, seconds."""
        return 1.0 / math.sqrt(self.low_rps * self.high_rps)

    def training(self) -> CentredReward:
        """Returns an environment whose episodes' rates are drawn evenly in the logarithm."""
        return CentredReward(RoutingEnvironment(self.config, self._episode))

    def test(self, rate_rps: float, seed: int, duration_s: float) -> Workload:
        """Returns the requests of one test: a stream that no training can draw."""
        rng = np.random.default_rng(entropy(seed, f"crosscheck/{rate_rps:.6g}"))
        return self.setting.workload(poisson(rate_rps, duration_s, rng), duration_s, rng)

    def _episode(self, rng: np.random.Generator) -> Workload:
        rate = float(np.exp(rng.uniform(math.log(self.low_rps), math.log(self.high_rps))))
        shortest_s = SHORTEST_EPISODE_DEADLINES * self.setting.deadline_s
        duration_s = max(self.episode_requests / rate, shortest_s)
        return self.setting.workload(poisson(rate, duration_s, rng), duration_s, rng)


@dataclass(frozen=True, slots=True)
class Score:
    """How a policy did on one test.

    Attributes:
        availability: share of requests answered on time.
        performance: mean reward per request.
    """

    availability: float
    performance: float


def play(arena: Arena, choose: Choose, offered: Workload, warm_up_s: float) -> Score:
    """Steps a policy through the environment over one workload."""
    environment = RoutingEnvironment(arena.config, lambda _: offered)
    observation, info = environment.reset(seed=0)
    done = len(offered) == 0
    while not done:
        action = choose(observation, info["action_mask"])
        observation, _, _, done, info = environment.step(np.int64(action))
    result = environment.result()
    return Score(result.availability(warm_up_s), result.performance(warm_up_s))


def play_compiled(arena: Arena, policy: PolicySpec, offered: Workload, warm_up_s: float) -> Score:
    """Scores a policy of the router's own on the same workload."""
    result = simulate(arena.config, offered, policy)
    return Score(result.availability(warm_up_s), result.performance(warm_up_s))


def held_rps(arena_setting: Setting, policy: PolicySpec, seeds: Sequence[int]) -> float:
    """Returns the rate a policy holds in this setting without the safety net."""
    from trainer.evaluation.hold import highest_held_rps

    return highest_held_rps(
        arena_setting,
        policy,
        low_rps=1.0,
        high_rps=10_000.0,
        seeds=seeds,
        duration_s=10.0,
        safety=False,
        tolerance=0.05,
    )
