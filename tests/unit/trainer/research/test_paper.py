"""Training of the paper's policy: transitions, learning, reproducibility."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from router.dqn.paper_snapshot import PaperWeights, load_paper_snapshot
from tests.unit.router import fleets
from trainer.research.paper import (
    PaperConfig,
    PaperLearner,
    RequestSteps,
    collect,
    forward,
    main,
    paper_spec,
    train_paper,
)
from trainer.research.tuning import make_case
from trainer.simulation.setting import shared_fleet_setting
from trainer.simulation.simulate import simulate

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

SETTING = shared_fleet_setting("test", fleets.profile(), fleets.quality(), device_count=2)
SMALL = PaperConfig(
    requests=3_000,
    hidden_count=8,
    episode_requests=400,
    shortest_s=0.5,
    replay_count=2_000,
    validations=2,
)


def prefers(tier: int) -> PaperWeights:
    """Returns a network that always takes one tier."""
    bias_T = np.zeros(3, np.float32)
    bias_T[tier] = 1.0
    return PaperWeights(
        np.zeros((6, 4), np.float32),
        np.zeros(4, np.float32),
        np.zeros((4, 3), np.float32),
        bias_T,
    )


def test_transitions_are_those_of_the_policy_that_ran() -> None:
    """Without exploration every action is the network's, states follow one another."""
    found = collect(SETTING, prefers(1), SMALL, 0.0, seed=3)
    assert (found.action_B == 1).all()
    np.testing.assert_array_equal(found.x_BI[1:], found.next_x_BI[:-1])
    assert (found.x_BI[:, :2].sum(axis=1) == 1.0).all()
    assert found.x_BI[:, 3].max() > 0.0 == found.x_BI[:, [2, 4]].max()


def test_full_exploration_draws_every_tier_evenly() -> None:
    """With epsilon 1 each model gets about a third."""
    found = collect(SETTING, prefers(1), SMALL, 1.0, seed=3)
    share_T = np.bincount(found.action_B, minlength=3) / len(found.action_B)
    assert np.abs(share_T - 1.0 / 3.0).max() < 0.1


def test_rewards_are_the_quality_of_what_came_in_time() -> None:
    """At a load that one tier carries, a task's reward is that tier's quality or nothing."""
    found = collect(SETTING, prefers(1), SMALL, 0.0, seed=3)
    easy = found.x_BI[:, 0] == 1.0
    assert set(np.unique(found.reward_B[easy])) <= {np.float32(0.0), np.float32(0.95)}
    assert found.reward_B.max() > 0.0


def test_learner_finds_the_better_model_where_the_reward_tells_it() -> None:
    """On transitions in which tier 2 pays and the others do not, it ends up preferred."""
    config = PaperConfig(hidden_count=8, learning_rate=1e-2, sync_steps=20, replay_count=500)
    learner = PaperLearner(6, 3, config, seed=1)
    rng = np.random.default_rng(0)
    x_BI = rng.random((500, 6)).astype(np.float32)
    action_B = rng.integers(3, size=500)
    reward_B = (action_B == 2).astype(np.float32)
    learner.add(RequestSteps(x_BI, action_B, reward_B, np.roll(x_BI, -1, axis=0)))
    for _ in range(400):
        learner.step()
    layers = {k: torch.from_numpy(part) for k, part in learner.weights()._asdict().items()}
    best_B = forward(layers, torch.from_numpy(x_BI)).argmax(dim=1).numpy()
    assert (best_B == 2).mean() > 0.95


def test_replay_keeps_the_newest() -> None:
    """Beyond its size the oldest transitions go."""
    learner = PaperLearner(1, 3, PaperConfig(replay_count=4, batch_size=64), seed=1)
    for value in range(6):
        one = np.full((1, 1), value, np.float32)
        learner.add(RequestSteps(one, np.zeros(1, np.int64), np.zeros(1, np.float32), one))
    assert sorted(learner.replay.x_BI.ravel().tolist()) == [2.0, 3.0, 4.0, 5.0]


def test_same_seed_same_snapshot() -> None:
    """A run is a function of setting, config and seed."""
    blobs = [train_paper(SETTING, seed=seed, config=SMALL) for seed in (1, 1, 2)]
    assert blobs[0] == blobs[1] != blobs[2]
    snapshot = load_paper_snapshot(blobs[0], SETTING.catalog)
    assert snapshot.training["simulated_requests"] >= SMALL.requests
    assert snapshot.fleet["device_count"] == 2


def test_simulator_runs_the_network() -> None:
    """A network that prefers medium serves everything there."""
    case = make_case(SETTING, 60.0, seed=1, requests=200, reference=1.0)
    result = simulate(case.config, case.workload, paper_spec(prefers(1)), 1)
    assert result.tier_share(3).tolist() == [0.0, 1.0, 0.0]


def test_bad_budget_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and one line that names the field."""
    assert main(["--requests", "0"]) == 2
    error = capsys.readouterr().err
    assert "requests must be at least 1" in error
    assert error.count("\n") == 1
