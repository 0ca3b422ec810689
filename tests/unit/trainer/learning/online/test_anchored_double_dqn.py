"""The anchored learner: what holds it, what moves it, what survives a restart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from router.dqn.snapshot import Weights
from trainer.learning.descent import LearnerStateError
from trainer.learning.network import forward, initial_weights
from trainer.learning.online.anchored_double_dqn import AnchoredLearner
from trainer.learning.online.config import LearnerConfig
from trainer.learning.online.replay import Transitions

torch.set_num_threads(1)

CANDIDATES = 4


def _weights(seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    return initial_weights(3, 8, rng, np.array([0.3, 0.0, 0.0], np.float32))


def _learner(anchor: float, seed: int = 0) -> AnchoredLearner:
    config = LearnerConfig(hidden_count=8, learning_rate=3e-3, target_rate=0.05, anchor=anchor)
    learner = AnchoredLearner(config, _weights(seed))
    learner.transition_count = 1000
    return learner


def _batch(
    seed: int, *, shortfall: float = np.nan, noise: float = 5.0, count: int = 64
) -> Transitions:
    """Candidate 0 is taken always; returns are noise about a value of the state."""
    rng = np.random.default_rng(seed)
    x = rng.random((count, CANDIDATES, 3)).astype(np.float32)
    allowed = np.ones((count, CANDIDATES), bool)
    returns = (10.0 * x[:, :, 1].mean(axis=1) + noise * rng.normal(size=count)).astype(np.float32)
    return Transitions(
        x,
        allowed,
        np.zeros(count, np.int64),
        returns,
        np.zeros(count, np.float32),
        x,
        allowed,
        np.full(count, shortfall, np.float32),
    )


def _moved(learner: AnchoredLearner, start: Weights) -> torch.Tensor:
    """What learning has changed in every candidate's value [B, C], on states never seen."""
    batch = _batch(999)
    x, allowed = torch.from_numpy(batch.x_BCF), torch.from_numpy(batch.allowed_BC)

    def q(weights: Weights) -> torch.Tensor:
        tensors = {name: torch.tensor(np.asarray(w)) for name, w in weights._asdict().items()}
        return forward(tensors, x, allowed)

    return q(learner.weights()) - q(start)


def _learn(
    learner: AnchoredLearner, shortfall: float = np.nan, noise: float = 5.0
) -> AnchoredLearner:
    for step in range(300):
        learner.step(_batch(step % 40, shortfall=shortfall, noise=noise))
    return learner


def test_anchor_holds_actions_never_taken() -> None:
    """The stronger the anchor, the less values of candidates move that no data speak of."""
    loose, tight = _learn(_learner(10.0)), _learn(_learner(100_000.0))
    loose_moved, tight_moved = (
        _moved(learner, _weights())[:, 1:].square().mean().sqrt() for learner in (loose, tight)
    )
    assert tight_moved < 0.01
    assert tight_moved < 0.3 * loose_moved


def test_anchor_weighs_less_the_more_transitions_there_are() -> None:
    """It counts as a number of transitions, so the same shortfall moves more if it came often."""
    few, many = _learner(1000.0), _learner(1000.0)
    few.transition_count, many.transition_count = 10, 100_000
    few_moved, many_moved = (
        _moved(_learn(learner, shortfall=-0.5, noise=0.0), _weights())[:, 0].mean()
        for learner in (few, many)
    )
    assert float(many_moved) < -0.3
    assert float(few_moved) > -0.2


def test_shortfall_corrects_the_value_of_the_action_taken() -> None:
    """An action that keeps earning .2 less than promised ends about .2 lower."""
    learner = _learn(_learner(1.0), shortfall=-0.2)
    assert float(_moved(learner, _weights())[:, 0].mean()) == pytest.approx(-0.2, abs=0.05)


def test_noise_of_the_best_action_leaves_the_network_as_it_is() -> None:
    """Returns of the best action go into the state value alone."""
    learner = _learner(1.0)
    start = learner.weights()
    for step in range(50):
        batch = _batch(step)
        x = batch.x_BCF.copy()
        x[:, 0, 0] = 2.0  # the best by far
        learner.step(batch._replace(x_BCF=x))
    # Adam divides by the gradient's size, so it must be zero, and not merely small.
    np.testing.assert_array_equal(start.w2_GH, learner.weights().w2_GH)


def test_resumes_exactly_with_its_anchor() -> None:
    """A restored learner, made from other weights, goes on with the first one's anchor."""
    whole, first = _learner(1000.0), _learner(1000.0)
    for step in range(10):
        whole.step(_batch(step))
        first.step(_batch(step))
    resumed = _learner(1000.0, seed=5)
    resumed.set_state(first.get_state())
    for step in range(10, 20):
        assert whole.step(_batch(step)) == pytest.approx(resumed.step(_batch(step)), rel=1e-5)
    np.testing.assert_allclose(whole.weights().w2_GH, resumed.weights().w2_GH, rtol=1e-5)
    np.testing.assert_array_equal(
        whole.get_state()["start.w1_FH"], resumed.get_state()["start.w1_FH"]
    )


def test_state_without_an_anchor_is_refused() -> None:
    """State of a learner without an anchor changes nothing."""
    learner = _learner(1.0)
    state = {k: v for k, v in learner.get_state().items() if not k.startswith("start.")}
    before = learner.weights()
    with pytest.raises(LearnerStateError, match=r"start\."):
        learner.set_state(state)
    np.testing.assert_array_equal(before.w1_FH, learner.weights().w1_FH)
