"""Double DQN: network twin, targets, learning, resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from router.dqn.network import q_values
from trainer.learning.config import LearnerConfig, TrainingConfigError
from trainer.learning.learner import (
    Learner,
    LearnerStateError,
    Parameters,
    double_dqn_targets,
    forward,
    initial_weights,
)
from trainer.learning.online.replay import Transitions

torch.set_num_threads(1)


def _tensors(learner: Learner) -> Parameters:
    return {name: torch.tensor(np.asarray(w)) for name, w in learner.weights()._asdict().items()}


def _learner(seed: int = 0, planned: int = 0, **config: float) -> Learner:
    rng = np.random.default_rng(seed)
    weights = initial_weights(3, 8, rng, np.full(3, 0.1, np.float32))
    return Learner(
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


def test_batched_network_equals_the_request_path() -> None:
    """The differentiable network and the numpy kernel are one function."""
    learner = _learner(target_rate=0.5, learning_rate=0.01)
    for step in range(20):
        learner.step(_batch(step))
    batch = _batch()
    x, allowed_BC = torch.from_numpy(batch.x_BCF), torch.from_numpy(batch.allowed_BC)
    q_BC = forward(_tensors(learner), x, allowed_BC, base_column=1).numpy()
    for b in range(len(q_BC)):
        out_C = np.zeros(4)
        base_C = batch.x_BCF[b, :, 1].astype(np.float64)
        q_values(batch.x_BCF[b], batch.allowed_BC[b], base_C, *learner.weights(), out_C)
        allowed = batch.allowed_BC[b]
        np.testing.assert_allclose(out_C[allowed], q_BC[b][allowed], rtol=1e-4, atol=1e-5)


def test_target_uses_online_choice_and_target_value() -> None:
    """The next action is the online network's, its value the target network's, masked rows out."""
    online, target = _tensors(_learner(seed=1)), _tensors(_learner(seed=2))
    x = torch.rand(5, 4, 3)
    allowed = torch.tensor([[True, True, False, True]] * 5)
    discount = torch.tensor([0.0, 0.5, 1.0, 0.9, 0.1])
    y = double_dqn_targets(online, target, torch.ones(5), discount, x, allowed)
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


def test_config_reports_every_mistake() -> None:
    """All wrong values of a config are reported together."""
    with pytest.raises(TrainingConfigError) as caught:
        LearnerConfig(hidden_count=0, target_rate=2.0, replay_capacity=1)
    assert len(caught.value.problems) == 3
