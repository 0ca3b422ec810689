"""What a training run starts from, and how much of what it fitted is kept."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from router.dqn.network import q_values
from router.dqn.snapshot import Weights
from router.features import FEATURE_COUNT, SHIFT_COLUMN
from trainer.learning.offline.correction import scaled_correction, start_weights

COUNT = 5


def values(weights: Weights, x_CF: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns what a network adds to a score of zero."""
    out_C = np.zeros(COUNT)
    q_values(x_CF, np.ones(COUNT, bool), np.zeros(COUNT), *weights, out_C)
    return out_C


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_a_scaled_correction_goes_that_part_of_the_way_from_the_prior(scale: float) -> None:
    """The prior stays whole; of what the network adds to it the part is kept."""
    rng = np.random.default_rng(3)
    start = start_weights(8, rng)
    fitted = start._replace(
        w3_P=start.w3_P + rng.normal(size=start.w3_P.shape).astype(np.float32), b3=np.float32(0.3)
    )
    x_CF = rng.normal(size=(COUNT, FEATURE_COUNT)).astype(np.float32)
    prior_C = x_CF[:, SHIFT_COLUMN]
    np.testing.assert_allclose(values(start, x_CF), prior_C, atol=1e-5)
    found_C = values(scaled_correction(fitted, scale), x_CF) - prior_C
    np.testing.assert_allclose(found_C, scale * (values(fitted, x_CF) - prior_C), atol=1e-4)
