"""Double DQN: targets, learning, resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.learning.descent import LearnerStateError
from trainer.learning.network import Parameters, forward, initial_weights
from trainer.learning.online.config import LearnerConfig
from trainer.learning.online.double_dqn import DoubleDqnLearner, double_dqn_targets
from trainer.learning.online.replay import Transitions

torch.set_num_threads(1)


def _tensors(learner: DoubleDqnLearner) -> Parameters:
    return {name: torch.tensor(np.asarray(w)) for name, w in learner.weights()._asdict().items()}


def _learner(seed: int = 0, planned: int = 0, **config: float) -> DoubleDqnLearner:
    rng = np.random.default_rng(seed)
    weights = initial_weights(3, 8, rng, np.full(3, 0.1, np.float32))
    return DoubleDqnLearner(
        LearnerConfig(hidden_count=8, **config),  # type: ignore[arg-type]
        weights,
        planned_step_count=planned,
    )


def _batch(seed: int = 0, count: int = 64, candidates: int = 4) -> Transitions:
    """One-step problems: the reward is the first feature of the chosen row."""
    rng = np.random.default_rng(seed)
    x = rng.random((count, candidates, 3)).astype(np.float32)
    allowed = rng.random((count, candidates)) < 0.7
    allowed[:, 0] = True
    action = np.array([rng.choice(np.flatnonzero(row)) for row in allowed])
    reward = x[np.arange(count), action, 0]
    return Transitions(x, allowed, action, reward, np.zeros(count, np.float32), x, allowed)


def test_target_uses_online_choice_and_target_value() -> None:
    """The next action is the online network's, its value the target network's, masked rows out."""
    online, target = _tensors(_learner(seed=1)), _tensors(_learner(seed=2))
    x = torch.rand(5, 4, 3)
    allowed = torch.tensor([[True, True, False, True]] * 5)
    discount = torch.tensor([0.0, 0.5, 1.0, 0.9, 0.1])
    y = double_dqn_targets(forward, online, target, torch.ones(5), discount, x, allowed)
    q_online, q_target = forward(online, x, allowed), forward(target, x, allowed)
    for b in range(5):
        rows = [0, 1, 3]
        best = max(rows, key=lambda c: float(q_online[b, c]))
        assert float(y[b]) == pytest.approx(1.0 + float(discount[b] * q_target[b, best]), rel=1e-5)
    assert float(y[0]) == 1.0


def test_learns_a_known_value() -> None:
    """On a problem with a known answer the exported network finds it."""
    learner = _learner(learning_rate=3e-3, target_rate=0.05)
    for step in range(600):
        learner.step(_batch(seed=step % 40))
    test = _batch(seed=999)
    q_BC = forward(
        _tensors(learner), torch.from_numpy(test.x_BCF), torch.from_numpy(test.allowed_BC)
    ).numpy()
    error = np.abs(q_BC - test.x_BCF[:, :, 0])[test.allowed_BC]
    assert error.mean() < 0.05


def test_resumes_exactly() -> None:
    """A learner restored from its state goes on as if it had never stopped."""
    whole, first = _learner(planned=20), _learner(planned=20)
    for step in range(10):
        whole.step(_batch(step))
        first.step(_batch(step))
    resumed = _learner(seed=5, planned=20)
    resumed.set_state(first.get_state())
    assert resumed.step_count == 10
    for step in range(10, 20):
        assert whole.step(_batch(step)) == pytest.approx(resumed.step(_batch(step)), rel=1e-6)
    np.testing.assert_allclose(whole.weights().w2_GH, resumed.weights().w2_GH, rtol=1e-6)


def test_foreign_state_is_refused() -> None:
    """State of a network of another size is refused and changes nothing."""
    learner = _learner()
    state = learner.get_state()
    before = learner.weights()
    state["online.w1_FH"] = np.zeros((9, 9), np.float32)
    with pytest.raises(LearnerStateError, match="w1_FH"):
        learner.set_state(state)
    np.testing.assert_array_equal(before.w1_FH, learner.weights().w1_FH)
