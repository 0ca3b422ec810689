"""The two networks our Double DQN is run on: the product's, and one as the library's.

The product's has one set of weights for all candidates, so that candidates may come and go. The
library's reads all features as one vector and has an output for each action.

Shape letters: B batch, C candidates, F features, H hidden units, I = C F inputs.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from router.dqn import network
from router.dqn.snapshot import Weights
from router.features import FEATURE_COUNT
from trainer.learning.descent import State
from trainer.learning.network import initial_weights
from trainer.learning.online.config import LearnerConfig
from trainer.learning.online.double_dqn import DoubleDqnLearner

HIDDEN = (64, 64)
"""Hidden units of the library's networks, and of the flat one."""


class Network(enum.Enum):
    """Which network learns."""

    SHARED = "shared"
    """The product's, `router.dqn.network`."""
    FLAT = "flat"
    """As wide as the library's, and started as torch starts its layers."""


class FlatWeights(NamedTuple):
    """Layers of the flat network.

    Attributes:
        w1_IH: first layer, on all features of all candidates.
        b1_H: its bias.
        w2_HH: second layer.
        b2_H: its bias.
        w3_HC: an output per candidate.
        b3_C: its bias.
    """

    w1_IH: NDArray[np.float32]
    b1_H: NDArray[np.float32]
    w2_HH: NDArray[np.float32]
    b2_H: NDArray[np.float32]
    w3_HC: NDArray[np.float32]
    b3_C: NDArray[np.float32]


class FlatLearner(DoubleDqnLearner):
    """Our learner on the flat network."""

    def q_values(self, p: Mapping[str, Tensor], x_BCF: Tensor, allowed_BC: Tensor) -> Tensor:
        """Returns q_BC."""
        q_BC: Tensor = flat_q_values(p, x_BCF.flatten(1))
        return q_BC


def make_learner(
    kind: Network,
    config: LearnerConfig,
    candidate_count: int,
    rng: np.random.Generator,
    planned_step_count: int,
) -> DoubleDqnLearner:
    """Returns our learner with a random network."""
    if kind is Network.FLAT:
        flat = initial_flat_weights(candidate_count, rng)
        return FlatLearner(config, flat, planned_step_count=planned_step_count)
    weights = initial_weights(FEATURE_COUNT, config.hidden_count, rng)
    return DoubleDqnLearner(config, weights, planned_step_count=planned_step_count)


def best(
    kind: Network, arrays: State, x_CF: NDArray[np.float32], allowed_C: NDArray[np.bool_]
) -> int:
    """Returns the allowed candidate of the highest value."""
    if kind is Network.FLAT:
        q_C = flat_q_values(arrays, x_CF.reshape(-1))
    else:
        q_C = np.zeros(len(x_CF))
        # Nothing to correct: here the network stands alone, as the library's does.
        network.q_values(x_CF, allowed_C, np.zeros(len(x_CF)), *Weights.of(arrays), q_C)
    return int(np.argmax(np.where(allowed_C, q_C, -np.inf)))


def initial_flat_weights(candidate_count: int, rng: np.random.Generator) -> FlatWeights:
    """Returns layers drawn evenly within 1 / sqrt(inputs), as torch draws them."""
    sizes = (candidate_count * FEATURE_COUNT, *HIDDEN, candidate_count)
    arrays = []
    for inputs, outputs in itertools.pairwise(sizes):
        limit = 1.0 / math.sqrt(inputs)
        shapes = (inputs, outputs), (outputs,)
        arrays += [rng.uniform(-limit, limit, shape).astype(np.float32) for shape in shapes]
    return FlatWeights(*arrays)


def flat_q_values(p: Mapping[str, Any], x_I: Any) -> Any:
    """Returns a value per candidate, of one state or of a batch, of arrays or of tensors."""
    h_H = (x_I @ p["w1_IH"] + p["b1_H"]).clip(0.0)
    h_H = (h_H @ p["w2_HH"] + p["b2_H"]).clip(0.0)
    return h_H @ p["w3_HC"] + p["b3_C"]
