"""The simulator behind the Gymnasium interface, so that any RL library can be pointed at it.

One step is one decision. Observation: the features of all candidates, flattened; `info` carries the
mask of allowed actions, the features as a matrix, the time since the last decision (the problem
is semi-Markov: discount by elapsed time), and which request of the workload is decided. Reward: the
rewards of the requests that ended since the last decision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from router.features import FEATURES
from trainer.simulation import loop
from trainer.simulation.simulate import (
    SimulationConfig,
    SimulationResult,
    make_world,
    result_of,
)
from trainer.simulation.state import World
from trainer.simulation.workload import Workload

Observation = NDArray[np.float32]
Info = dict[str, Any]


class RoutingEnvironment(gymnasium.Env[Observation, np.int64]):
    """Routes the requests of one workload per episode.

    An action that is not allowed is replaced by the first allowed one and counted in `info`
    ("replaced"); an episode ends (truncated, never terminated) when the workload is done.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - declared so by the interface

    def __init__(
        self,
        config: SimulationConfig,
        make_workload: Callable[[np.random.Generator], Workload],
    ) -> None:
        """Makes an environment; each episode asks `make_workload` for its requests."""
        self._config = config
        self._make_workload = make_workload
        count = config.fleet.candidate_count
        low = np.tile([feature.low for feature in FEATURES], count).astype(np.float32)
        high = np.tile([feature.high for feature in FEATURES], count).astype(np.float32)
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.action_space = gymnasium.spaces.Discrete(count)
        self._world: World | None = None
        self._workload: Workload | None = None
        self._request = -1
        self._earned = 0.0
        self._time_s = 0.0
        self._replaced = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Starts an episode; a seed makes it, and those after it, reproducible."""
        super().reset(seed=seed)
        self._workload = self._make_workload(self.np_random)
        episode_seed = int(self.np_random.integers(2**31))
        self._world = make_world(self._config, self._workload, episode_seed)
        self._earned, self._time_s, self._replaced = 0.0, 0.0, 0
        self._request = loop.advance(self._world)
        return self._observe()

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, Info]:
        """Dispatches the request at hand and runs on to the next decision.

        Raises:
            gymnasium.error.ResetNeeded: before `reset`, or after the episode's end.
        """
        world = self._world
        if world is None or self._request < 0:
            raise gymnasium.error.ResetNeeded("call reset before step, and after an episode's end")
        row = int(action)
        if not world.allowed_C[row]:
            row = int(np.argmax(world.allowed_C))
            self._replaced += 1
        loop.apply(world, self._request, row)
        self._request = loop.advance(world)
        observation, info = self._observe()
        earned = float(world.clock[0]["reward_sum"])
        reward, self._earned = earned - self._earned, earned
        return observation, reward, False, self._request < 0, info

    def result(self) -> SimulationResult:
        """Returns what happened so far in the episode; raises ResetNeeded before the first."""
        if self._world is None or self._workload is None:
            raise gymnasium.error.ResetNeeded("call reset first")
        return result_of(self._world, self._workload)

    def _observe(self) -> tuple[Observation, Info]:
        """Returns the observation of the decision at hand; zeros at the end."""
        world = self._world
        assert world is not None
        now_s = float(world.clock[0]["now_s"])
        if self._request >= 0:
            query = loop.query_for(world, self._request, now_s)
            loop.fill_features(world, self._request, query, world.base_P)
            allowed_C = world.allowed_C.copy()
        else:
            world.features_CF[:] = 0.0
            allowed_C = np.ones(len(world.allowed_C), dtype=np.bool_)
        features_CF = world.features_CF.copy()
        info: Info = {
            "action_mask": allowed_C.astype(np.int8),
            "features_CF": features_CF,
            "elapsed_s": now_s - self._time_s,
            "time_s": now_s,
            "replaced": self._replaced,
            "request": self._request,
        }
        self._time_s = now_s
        return features_CF.reshape(-1), info
