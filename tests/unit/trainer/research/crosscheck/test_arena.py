"""One environment and one test for every learner."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.trainer.research.crosscheck.arenas import arena, last
from tests.unit.trainer.simulation.settings import spec
from trainer.research.crosscheck.arena import play, play_compiled

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def test_a_step_at_peak_performance_earns_nothing() -> None:
    """The largest tier on an idle device ends at a reward of about 0; a missed request costs 1."""
    environment = arena(low_rps=2.0, high_rps=2.0).training()
    environment.reset(seed=3)
    done, total, steps = False, 0.0, 0
    while not done:
        _, reward, _, done, _ = environment.step(np.int64(2))
        total, steps = total + float(reward), steps + 1
    assert steps > 2
    assert total == pytest.approx(0.0, abs=1e-9)


def test_own_rewards_are_the_rewards_of_the_steps_by_request() -> None:
    """Both sum to the same over an episode, and only the order of ends is another."""
    environment = arena(low_rps=60.0).training()
    _, info = environment.reset(seed=3)
    done, rewards, requests = False, [], []
    while not done:
        requests.append(info["request"])
        _, reward, _, done, info = environment.step(np.int64(2))
        rewards.append(float(reward))
    own_N = environment.own_rewards(requests)
    assert info["request"] < 0
    assert own_N.sum() == pytest.approx(sum(rewards))
    assert own_N.tolist() != pytest.approx(rewards)


def test_stepped_and_compiled_tests_agree() -> None:
    """The same policy scores the same through the environment and through the compiled run."""
    where = arena()
    offered = where.test(60.0, 900_001, 5.0)
    stepped = play(where, last, offered, 0.8)
    assert stepped == play_compiled(where, spec("static-large"), offered, 0.8)
    assert 0.0 < stepped.availability < 1.0


def test_tests_are_the_same_for_all_and_differ_between_seeds() -> None:
    """Rate and seed decide a test, and nothing else."""
    where = arena()
    first, again, other = (where.test(60.0, seed, 2.0) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.arrival_N, again.arrival_N)
    assert len(first) != len(other) or (first.arrival_N != other.arrival_N).any()
