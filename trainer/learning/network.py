"""The Q-network for learning: its start, and the differentiable twin of its forward pass.

What decides is `router/dqn/network.py`; here the same function runs on batches of tensors.

Shape letters: B batch, C candidates, F features, H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router.dqn.snapshot import Weights

Parameters = dict[str, Tensor]
"""Weights by name; those of the Q-network have the field names of `Weights`."""


def he_layer(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Returns a random layer (He et al., arXiv 1502.01852) of a size that fits its inputs."""
    drawn: NDArray[np.float32] = rng.normal(size=shape).astype(np.float32)
    return drawn * np.float32(np.sqrt(2.0 / shape[0]))


def initial_weights(
    feature_count: int,
    hidden_count: int,
    rng: np.random.Generator,
    linear_F: NDArray[np.float32] | None = None,
) -> Weights:
    """Returns random layers whose output is a linear term.

    That is `linear_F`, nothing unless given: a network that corrects a score starts as that score.
    """
    linear_F = np.zeros(feature_count, np.float32) if linear_F is None else linear_F
    out_H = np.zeros(hidden_count, np.float32)
    return Weights(
        he_layer(rng, feature_count, hidden_count),
        np.zeros(hidden_count, np.float32),
        he_layer(rng, 2 * hidden_count, hidden_count),
        np.zeros(hidden_count, np.float32),
        np.concatenate([out_H, linear_F]).astype(np.float32),
        np.float32(0.0),
    )


def forward(
    p: Mapping[str, Tensor], x_BCF: Tensor, allowed_BC: Tensor, base_column: int | None = None
) -> Tensor:
    """Returns q_BC: the batched, differentiable twin of `network.q_values`, not masked.

    Args:
        p: weights by name.
        x_BCF: features.
        allowed_BC: candidates allowed.
        base_column: feature that holds the score the network corrects; None: it corrects nothing.
    """
    hidden = p["b1_H"].shape[0]
    h_BCH = torch.relu(x_BCF @ p["w1_FH"] + p["b1_H"])
    open_BC = allowed_BC.to(x_BCF.dtype)
    count_B1 = open_BC.sum(dim=1, keepdim=True).clamp_min(1.0)
    g_BH = (open_BC.unsqueeze(2) * h_BCH).sum(dim=1) / count_B1
    context_BH = g_BH @ p["w2_GH"][hidden:] + p["b2_H"]
    z_BCH = torch.relu(h_BCH @ p["w2_GH"][:hidden] + context_BH.unsqueeze(1))
    q_BC = z_BCH @ p["w3_P"][:hidden] + x_BCF @ p["w3_P"][hidden:] + p["b3"]
    return q_BC if base_column is None else q_BC + x_BCF[:, :, base_column]
