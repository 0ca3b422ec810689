"""The fit of a tier's costs: what it finds, and what it refuses to find."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from router.profile import TierProfile
from trainer.profiling.latency_fit import Fit, nonnegative_least_squares, ordered


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=6, max_size=20))
def test_least_squares_never_go_below_zero(rows: list[list[float]]) -> None:
    """Whatever the rows, no parameter is negative and none is worse than doing nothing."""
    rows_NP, targets_N = np.array(rows), np.ones(len(rows))
    solution = nonnegative_least_squares(rows_NP, targets_N)
    assert np.all(solution >= 0)
    assert np.sum((rows_NP @ solution - targets_N) ** 2) <= len(rows) + 1e-9


def fit_of(step_s: float) -> Fit:
    """A fit with this step cost."""
    return Fit(TierProfile(step_s, 0.0, 0.0), 10, 0.05, 0.01, 0.1)


def test_step_costs_rise_with_the_tiers() -> None:
    """A larger tier that came out cheaper gets the smaller one's step."""
    fits = ordered(
        {"small": fit_of(0.002), "medium": fit_of(0.001), "large": fit_of(0.003)},
        ("small", "medium", "large"),
    )
    assert [fit.profile.step_s for fit in fits.values()] == [0.002, 0.002, 0.003]
