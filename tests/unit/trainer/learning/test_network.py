"""The network for learning is the one that decides."""

from __future__ import annotations

import numpy as np
import torch

from router.dqn.network import q_values
from trainer.learning.network import forward, initial_weights


def test_batched_network_equals_the_request_path() -> None:
    """The differentiable network and the numpy kernel are one function."""
    rng = np.random.default_rng(0)
    weights = initial_weights(3, 8, rng)._replace(
        w3_P=rng.normal(size=11).astype(np.float32), b3=np.float32(0.3)
    )
    x_BCF = rng.random((20, 4, 3)).astype(np.float32)
    allowed_BC = rng.random((20, 4)) < 0.7
    allowed_BC[:, 0] = True
    tensors = {name: torch.tensor(np.asarray(w)) for name, w in weights._asdict().items()}
    x, allowed = torch.from_numpy(x_BCF), torch.from_numpy(allowed_BC)
    q_BC = forward(tensors, x, allowed, base_column=1).numpy()
    for b in range(len(q_BC)):
        out_C = np.zeros(4)
        base_C = x_BCF[b, :, 1].astype(np.float64)
        q_values(x_BCF[b], allowed_BC[b], base_C, *weights, out_C)
        open_C = allowed_BC[b]
        np.testing.assert_allclose(out_C[open_C], q_BC[b][open_C], rtol=1e-4, atol=1e-5)


def test_start_is_its_linear_term() -> None:
    """Random hidden layers say nothing until they have learned something."""
    linear_F = np.array([0.5, -1.0, 0.0], np.float32)
    weights = initial_weights(3, 8, np.random.default_rng(0), linear_F)
    x_CF, out_C = np.random.default_rng(1).random((4, 3)).astype(np.float32), np.zeros(4)
    q_values(x_CF, np.ones(4, np.bool_), np.zeros(4), *weights, out_C)
    np.testing.assert_allclose(out_C, x_CF @ linear_F, rtol=1e-5)
