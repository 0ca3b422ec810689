"""This repository's Double DQN on the Gymnasium environment, as any library would use it.

The same learner and replay as in the services (`trainer/learning/online/`), fed by steps of the
environment. What training adds to it, paired returns and a start from the price policy, is left
out. A `Variant` says in what it differs from the library's DQN, or that it does not.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from router.features import FEATURE_COUNT
from trainer.learning.descent import State
from trainer.learning.online.config import LearnerConfig
from trainer.learning.online.replay import Replay, Transitions
from trainer.learning.online.returns import time_returns
from trainer.research.crosscheck.arena import Arena, Choose
from trainer.research.crosscheck.networks import Network, best, make_learner
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
    """Over one deadline, discounted by elapsed time, as the services' (which are credited too)."""


@dataclass(frozen=True, slots=True)
class Variant:
    """In what a run of ours differs from others.

    On the flat network, all else by default, it differs from the library's DQN in that it is Double
    DQN, in a target network that follows slowly and explores, and in its random numbers.

    Attributes:
        network: which one learns.
        target: what it is moved towards.
        credited: a decision earns what its own request will earn, as from the routers' records;
            else what came in until the next decision, as from the environment.
    """

    network: Network = Network.SHARED
    target: Target = Target.DECISION
    credited: bool = False


PLAIN = Variant()


@dataclass
class _Episode:
    """What happened since the last reset."""

    time_s: list[float] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    request: list[int] = field(default_factory=list)
    action: list[int] = field(default_factory=list)
    x: list[NDArray[np.float32]] = field(default_factory=list)
    allowed: list[NDArray[np.bool_]] = field(default_factory=list)


def train_double_dqn(
    arena: Arena,
    plan: TrainingPlan,
    seed: int,
    on_step: OnStep = lambda step: None,
    variant: Variant = PLAIN,
) -> State:
    """Trains for `plan.steps` steps of the environment; deterministic by seed.

    Returns:
        The network, for `chooser` of the same variant.
    """
    rng = np.random.default_rng([seed, 2])
    config = LearnerConfig(batch_size=plan.batch_size)
    environment = arena.training()
    _, info = environment.reset(seed=seed)
    planned_step_count = plan.steps // plan.steps_per_gradient
    candidate_count = len(info["action_mask"])
    learner = make_learner(variant.network, config, candidate_count, rng, planned_step_count)
    replay = Replay(capacity=config.replay_capacity, feature_count=FEATURE_COUNT)
    arrays = learner.exported()
    episode = _Episode()
    for step in range(plan.steps):
        x_CF, allowed_C = info["features_CF"], info["action_mask"].astype(np.bool_)
        if rng.random() < plan.epsilon(step):
            action = int(rng.choice(np.flatnonzero(allowed_C)))
        else:
            action = best(variant.network, arrays, x_CF, allowed_C)
        episode.time_s.append(info["time_s"])
        episode.request.append(info["request"])
        episode.x.append(x_CF)
        episode.allowed.append(allowed_C)
        episode.action.append(action)
        _, reward, _, done, info = environment.step(np.int64(action))
        episode.reward.append(float(reward))
        if done:
            if variant.credited:
                episode.reward = environment.own_rewards(episode.request).tolist()
            _keep(replay, episode, config, arena, variant)
            episode = _Episode()
            _, info = environment.reset()
        due = step >= plan.warm_up_steps and step % plan.steps_per_gradient == 0
        if due and len(replay) >= plan.batch_size:
            learner.step(replay.sample(plan.batch_size, rng))
            arrays = learner.exported()
        on_step(step + 1)
    return arrays


def chooser(arrays: State, variant: Variant = PLAIN) -> Choose:
    """Returns the greedy policy of a network."""

    def choose(observation: Observation, allowed_C: NDArray[np.int8]) -> int:
        x_CF = observation.reshape(-1, FEATURE_COUNT)
        return best(variant.network, arrays, x_CF, allowed_C.astype(np.bool_))

    return choose


def _keep(
    replay: Replay, episode: _Episode, config: LearnerConfig, arena: Arena, variant: Variant
) -> None:
    """Turns an episode into transitions; decisions whose return is not complete are left out."""
    count, deadline_s = len(episode.reward), arena.setting.deadline_s
    tau_s = config.tau_deadlines * deadline_s
    if variant.target is Target.DEADLINE:
        time_N, horizon_s = np.array(episode.time_s), config.horizon_deadlines * deadline_s
    else:
        # As if decisions were the mean time of one apart, whatever the rate: values then are of one
        # size at every rate, and the discount per decision is the library's.
        time_N, horizon_s = np.arange(count) * arena.mean_step_s, 0.5 * arena.mean_step_s
    no_gap_N = np.zeros(count, bool)
    returns = time_returns(time_N, np.array(episode.reward), no_gap_N, tau_s, horizon_s)
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
