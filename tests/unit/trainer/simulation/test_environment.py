"""The Gymnasium environment: the interface, and agreement with the compiled run."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.unit.trainer.simulation.settings import config, spec, traffic
from trainer.simulation.environment import RoutingEnvironment
from trainer.simulation.simulate import simulate
from trainer.simulation.workload import Workload

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def environment(offered: Workload | None = None) -> RoutingEnvironment:
    """Returns an environment over one workload, or over seeded random ones."""
    if offered is not None:
        return RoutingEnvironment(config(), lambda _: offered)
    return RoutingEnvironment(config(), lambda rng: traffic(100.0, 0.3, int(rng.integers(1000))))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasium_accepts_it() -> None:
    """Gymnasium's own checker finds no fault."""
    check_env(environment(), skip_render_check=True)


def test_same_actions_same_outcome_as_the_compiled_run() -> None:
    """Stepping through a policy's choices earns exactly what the compiled run earned."""
    offered = traffic(300.0, 1.0, 4)
    compiled = simulate(config(), offered, spec("price"))
    stepped = environment(offered)
    stepped.reset(seed=0)
    total, done, k = 0.0, False, 0
    while not done:
        _, reward, _, done, _ = stepped.step(compiled.action_N[k])
        total += reward
        k += 1
    assert k == len(offered)
    assert total == pytest.approx(compiled.reward_N.sum())
    np.testing.assert_array_equal(stepped.result().latency_N, compiled.latency_N)


def test_observation_and_mask_describe_the_decision() -> None:
    """The flat observation is the feature matrix; elapsed times add up to the time."""
    stepped = environment()
    observation, info = stepped.reset(seed=1)
    np.testing.assert_array_equal(observation, info["features_CF"].reshape(-1))
    assert info["action_mask"].tolist() == [1] * 6
    elapsed, done = info["elapsed_s"], False
    while not done:
        _, _, _, done, info = stepped.step(np.int64(0))
        assert info["elapsed_s"] >= 0.0
        elapsed += info["elapsed_s"]
    assert elapsed == pytest.approx(info["time_s"])


def test_step_before_reset_is_refused() -> None:
    """Without an episode there is nothing to decide."""
    with pytest.raises(gymnasium.error.ResetNeeded):
        environment().step(np.int64(0))
