"""Fitting to paired returns: differences count, levels and noise do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.learning.network import forward, initial_weights
from trainer.learning.offline.config import PairedConfig
from trainer.learning.offline.paired_learner import PairedLearner, paired_loss
from trainer.learning.offline.samples import PairedSamples


def test_loss_ignores_the_level() -> None:
    """A constant added to all returns of a decision changes nothing."""
    rng = np.random.default_rng(0)
    weights = initial_weights(3, 4, rng)
    parameters = {name: torch.tensor(np.asarray(w)) for name, w in weights._asdict().items()}
    x, tried = torch.rand(6, 4, 3), torch.rand(6, 4) < 0.7
    tried[:, :2] = True
    returns = torch.rand(6, 4) * tried
    shifted = (returns + 100.0 * torch.rand(6, 1)) * tried
    args = (parameters, x, torch.ones(6, 4, dtype=torch.bool), tried)
    config = PairedConfig()
    assert float(paired_loss(*args, returns, config)) == pytest.approx(
        float(paired_loss(*args, shifted, config)), rel=1e-3
    )


def test_learner_finds_the_better_action() -> None:
    """On returns with a known best action the network comes to prefer it."""
    rng = np.random.default_rng(1)
    config = PairedConfig(average_rate=0.1, shrinkage=0.0, weight_decay=0.0)
    learner = PairedLearner(initial_weights(3, 8, rng), config)

    def batch() -> PairedSamples:
        x = rng.random((128, 3, 3)).astype(np.float32)
        everything = np.ones((128, 3), bool)
        level = 50.0 * rng.random((128, 1))
        return PairedSamples(x, everything, everything, (x[:, :, 1] + level).astype(np.float32))

    losses = [learner.step(batch()) for _ in range(300)]
    assert np.mean(losses[-20:]) < 0.1 * np.mean(losses[:20])


def test_shrinkage_keeps_noise_out() -> None:
    """Where returns say nothing, the network stays near the correction it is pulled to."""
    sizes = {}
    for shrinkage in (0.0, 3.0):
        rng = np.random.default_rng(2)
        config = PairedConfig(shrinkage=shrinkage, weight_decay=0.0, average_rate=0.1)
        learner = PairedLearner(initial_weights(3, 16, rng), config, prior_column=2)
        x = rng.random((64, 3, 3)).astype(np.float32)
        everything = np.ones((64, 3), bool)
        noise = rng.normal(size=(64, 3)).astype(np.float32)
        for _ in range(300):
            learner.step(PairedSamples(x, everything, everything, noise))
        weights = {k: torch.tensor(np.asarray(w)) for k, w in learner.weights()._asdict().items()}
        q = forward(weights, torch.from_numpy(x), torch.from_numpy(everything)).numpy()
        off = (q - q.mean(axis=1, keepdims=True)) - (x - x.mean(axis=1, keepdims=True))[:, :, 2]
        sizes[shrinkage] = float(off.std())
    assert sizes[3.0] < 0.5 * sizes[0.0]
