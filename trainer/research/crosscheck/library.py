"""DQN and PPO of stable-baselines3 on the same environment, with the same budget of steps.

Their network reads the observation as one flat vector, without shared weights per candidate; they
discount per step, not by time, so the discount is that of the mean time between decisions. Both
are what a library offers, and part of what is compared.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.learning.online.config import LearnerConfig
from trainer.research.crosscheck.arena import Arena, Choose
from trainer.research.crosscheck.networks import HIDDEN
from trainer.research.crosscheck.own import OnStep, TrainingPlan
from trainer.simulation.environment import Observation

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

PACKAGE = "stable-baselines3"
LIBRARY_LEARNERS = ("sb3-dqn", "sb3-ppo")


class LibraryMissingError(RuntimeError):
    """The library is not installed; the message says how to get it."""


def is_installed() -> bool:
    """Returns whether the library is there."""
    return importlib.util.find_spec("stable_baselines3") is not None


def train_library(
    learner: str,
    arena: Arena,
    plan: TrainingPlan,
    seed: int,
    on_step: OnStep = lambda step: None,
) -> Choose:
    """Trains one of LIBRARY_LEARNERS and returns its greedy policy; deterministic by seed.

    Raises:
        LibraryMissingError: it is not installed.
    """
    if not is_installed():
        raise LibraryMissingError(
            f"{PACKAGE} is not installed; pip install 'tiercel[crosscheck]' brings it"
        )
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.logger import Logger

    make: Mapping[str, Any] = {"sb3-dqn": DQN, "sb3-ppo": PPO}
    environment = arena.training()
    environment.reset(seed=seed)
    options = _dqn(plan) if learner == "sb3-dqn" else _ppo(plan)
    model = make[learner](
        "MlpPolicy",
        environment,
        gamma=gamma(arena),
        batch_size=plan.batch_size,
        policy_kwargs={"net_arch": list(HIDDEN)},
        seed=seed,
        device="cpu",
        **options,
    )
    # Its own logger would leave a folder in the system's temporary one at every run.
    model.set_logger(Logger(folder=None, output_formats=[]))
    # PPO takes whole rollouts only and would go beyond the budget rather than stop short of it.
    whole = options.get("n_steps", 1)
    model.learn(max(1, plan.steps // whole) * whole, callback=_callback(on_step))
    return _chooser(model)


def gamma(arena: Arena) -> float:
    """Returns the discount per step that matches ours per time at the mean rate."""
    tau_s = LearnerConfig().tau_deadlines * arena.setting.deadline_s
    return math.exp(-arena.mean_step_s / tau_s)


def _dqn(plan: TrainingPlan) -> dict[str, Any]:
    config = LearnerConfig()
    rate, end = config.learning_rate, config.learning_rate_end
    return {
        "learning_rate": lambda left: end * (rate / end) ** left,
        "buffer_size": config.replay_capacity,
        "learning_starts": plan.warm_up_steps,
        "train_freq": plan.steps_per_gradient,
        "target_update_interval": 1_000,
        "exploration_fraction": plan.exploration_share,
        "exploration_final_eps": plan.epsilon_end,
    }


def _ppo(plan: TrainingPlan) -> dict[str, Any]:
    """Returns options with rollouts of whole batches, twenty of them at least."""
    batches = max(1, plan.steps // 20 // plan.batch_size)
    return {"n_steps": min(2_048, batches * plan.batch_size), "ent_coef": 0.01}


def _callback(on_step: OnStep) -> Any:
    from stable_baselines3.common.callbacks import BaseCallback

    class Report(BaseCallback):
        """Passes the number of steps on."""

        def _on_step(self) -> bool:
            on_step(self.num_timesteps)
            return True

    return Report()


def _chooser(model: BaseAlgorithm) -> Choose:
    def choose(observation: Observation, allowed_C: NDArray[np.int8]) -> int:
        action, _ = model.predict(observation, deterministic=True)
        return int(action)

    return choose
