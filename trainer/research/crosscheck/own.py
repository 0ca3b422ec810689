"""This repository's Double DQN on the Gymnasium environment, as any library would use it.

The same network, learner and replay as in the services (`trainer/learning/online/`), fed by steps
of the environment. What training adds to it, paired returns and a start from the price policy, is
left out. It is run with two kinds of targets, `Target`: those of the library and those of the
services.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from router.dqn import network
from router.dqn.snapshot import Weights
from router.features import FEATURE_COUNT
from trainer.learning.network import initial_weights
from trainer.learning.online.config import LearnerConfig
from trainer.learning.online.double_dqn import DoubleDqnLearner
from trainer.learning.online.replay import Replay, Transitions
from trainer.learning.online.returns import time_returns
from trainer.research.crosscheck.arena import Arena, Choose
from trainer.simulation.environment import Observation

OnStep = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How every learner of the comparison explores and learns.

    Attributes:
        steps: steps of the environment, the budget.
        warm_up_steps: steps before the first gradient.
        steps_per_gradient: steps of the environment per gradient step.
        exploration_share: share of the budget over which epsilon falls from 1 linearly.
        epsilon_end: epsilon from then on.
        batch_size: transitions per gradient.
    """

    steps: int
    warm_up_steps: int = 2_000
    steps_per_gradient: int = 4
    exploration_share: float = 0.5
    epsilon_end: float = 0.05
    batch_size: int = 256

    def epsilon(self, step: int) -> float:
        """Returns the share of random actions at a step."""
        share = step / max(1.0, self.exploration_share * self.steps)
        return max(self.epsilon_end, 1.0 - (1.0 - self.epsilon_end) * share)


class Target(enum.Enum):
    """What the network is moved towards: rewards up to a later decision, and its value there.

    Rewards between the two are those of the actions that were taken, exploration included (no
    correction, as in Rainbow, arXiv 1710.02298), so a long span says what exploring is worth.
    """

    DECISION = "decision"
    """Up to the next decision, discounted per decision: what the library's DQN does."""
    DEADLINE = "deadline"
    """Over one deadline, discounted by elapsed time: what the services do."""


@dataclass
class _Episode:
    """What happened since the last reset."""

    time_s: list[float] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    action: list[int] = field(default_factory=list)
    x: list[NDArray[np.float32]] = field(default_factory=list)
    allowed: list[NDArray[np.bool_]] = field(default_factory=list)


def train_double_dqn(
    arena: Arena,
    plan: TrainingPlan,
    seed: int,
    on_step: OnStep = lambda step: None,
    target: Target = Target.DECISION,
) -> Weights:
    """Trains for `plan.steps` steps of the environment; deterministic by seed."""
    rng = np.random.default_rng([seed, 2])
    config = LearnerConfig(batch_size=plan.batch_size)
    learner = DoubleDqnLearner(
        config,
        initial_weights(FEATURE_COUNT, config.hidden_count, rng),
        planned_step_count=plan.steps // plan.steps_per_gradient,
    )
    replay = Replay(capacity=config.replay_capacity, feature_count=FEATURE_COUNT)
    environment = arena.training()
    weights = learner.weights()
    _, info = environment.reset(seed=seed)
    episode = _Episode()
    for step in range(plan.steps):
        x_CF, allowed_C = info["features_CF"], info["action_mask"].astype(np.bool_)
        if rng.random() < plan.epsilon(step):
            action = int(rng.choice(np.flatnonzero(allowed_C)))
        else:
            action = _best(weights, x_CF, allowed_C)
        episode.time_s.append(info["time_s"])
        episode.x.append(x_CF)
        episode.allowed.append(allowed_C)
        episode.action.append(action)
        _, reward, _, done, info = environment.step(np.int64(action))
        episode.reward.append(float(reward))
        if done:
            _keep(replay, episode, config, arena, target)
            episode = _Episode()
            _, info = environment.reset()
        due = step >= plan.warm_up_steps and step % plan.steps_per_gradient == 0
        if due and len(replay) >= plan.batch_size:
            learner.step(replay.sample(plan.batch_size, rng))
            weights = learner.weights()
        on_step(step + 1)
    return weights


def chooser(weights: Weights) -> Choose:
    """Returns the greedy policy of a network."""

    def choose(observation: Observation, allowed_C: NDArray[np.int8]) -> int:
        return _best(weights, observation.reshape(-1, FEATURE_COUNT), allowed_C.astype(np.bool_))

    return choose


def _best(weights: Weights, x_CF: NDArray[np.float32], allowed_C: NDArray[np.bool_]) -> int:
    q_C = np.zeros(len(x_CF))
    # Nothing to correct: here the network stands alone, as the library's does.
    network.q_values(x_CF, allowed_C, np.zeros(len(x_CF)), *weights, q_C)
    return int(np.argmax(np.where(allowed_C, q_C, -np.inf)))


def _keep(
    replay: Replay, episode: _Episode, config: LearnerConfig, arena: Arena, target: Target
) -> None:
    """Turns an episode into transitions; decisions whose return is not complete are left out."""
    count, deadline_s = len(episode.reward), arena.setting.deadline_s
    if target is Target.DEADLINE:
        time_N, horizon_s = np.array(episode.time_s), config.horizon_deadlines * deadline_s
    else:
        # As if decisions were the mean time of one apart, whatever the rate: values then are of one
        # size at every rate, and the discount per decision is the library's.
        time_N, horizon_s = np.arange(count) * arena.mean_step_s, 0.5 * arena.mean_step_s
    returns = time_returns(
        time_N,
        np.array(episode.reward),
        np.zeros(count, bool),
        config.tau_deadlines * deadline_s,
        horizon_s,
    )
    rows = np.flatnonzero(returns.complete_N)
    if not len(rows):
        return
    x_NCF, allowed_NC = np.stack(episode.x), np.stack(episode.allowed)
    next_N = returns.next_N[rows]
    replay.append(
        Transitions(
            x_NCF[rows],
            allowed_NC[rows],
            np.array(episode.action, dtype=np.int64)[rows],
            returns.return_N[rows].astype(np.float32),
            returns.discount_N[rows].astype(np.float32),
            x_NCF[next_N],
            allowed_NC[next_N],
        )
    )
