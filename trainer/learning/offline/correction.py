"""Networks that correct the prior: the one that adds nothing to it, and parts of one that does."""

from __future__ import annotations

import numpy as np

from router.dqn.snapshot import Weights
from router.features import FEATURE_COUNT, SHIFT_COLUMN
from trainer.learning.network import initial_weights


def start_weights(hidden_count: int, rng: np.random.Generator) -> Weights:
    """Returns the network a run starts with: the prior, on the load as reckoned (`features.py`)."""
    linear_F = np.zeros(FEATURE_COUNT, np.float32)
    linear_F[SHIFT_COLUMN] = 1.0
    return initial_weights(FEATURE_COUNT, hidden_count, rng, linear_F)


def scaled_correction(weights: Weights, scale: float) -> Weights:
    """Returns the network whose correction of the prior is `scale` times that of `weights`."""
    prior_P = np.zeros_like(weights.w3_P)
    prior_P[weights.hidden_count + SHIFT_COLUMN] = 1.0
    w3_P = prior_P + np.float32(scale) * (weights.w3_P - prior_P)
    return weights._replace(w3_P=w3_P, b3=np.float32(scale * weights.b3))
