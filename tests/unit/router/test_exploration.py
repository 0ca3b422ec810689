"""What may be explored: other candidates, allowed and expected in time."""

from __future__ import annotations

import numpy as np

from router import kernels
from router.exploration import others
from router.policies.scores import ON_TIME_BIAS, ON_TIME_SHARPNESS


def test_others_are_allowed_and_expected_in_time() -> None:
    """The policy's own choice is not among them, nor is what is closed or would be late."""
    allowed_C = np.array([True, True, False, True, True])
    predicted_s_C = np.array([0.1, 0.1, 0.1, 0.39, 0.2])
    on_time_C = np.empty(5)
    kernels.on_time_probability(predicted_s_C, 0.4, ON_TIME_BIAS, ON_TIME_SHARPNESS, on_time_C)
    assert on_time_C[3] < 0.9 < on_time_C[4]
    assert others(0, allowed_C, predicted_s_C, 0.4, 0.9).tolist() == [1, 4]
    assert others(0, allowed_C, predicted_s_C, 0.4, 0.5).tolist() == [1, 3, 4]
    assert others(0, allowed_C, predicted_s_C, 0.0, 0.5).tolist() == []
