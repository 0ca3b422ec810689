"""The fit of a tier's costs: what it finds, and what it refuses to find."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.profile import TierProfile
from trainer.profiling.latency_fit import (
    Equation,
    Fit,
    FitError,
    fit_tier,
    nonnegative_least_squares,
    ordered,
)

ROWS = st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=6, max_size=20)


@settings(max_examples=50, deadline=None)
@given(ROWS)
@example([[5e-324, 0.0, 0.0, 0.0]] * 6)
@example([[1e-160, 1.0, 0.0, 1e-320]] * 6)
def test_least_squares_never_go_below_zero(rows: list[list[float]]) -> None:
    """Whatever the rows, parameters are finite, none is negative, and they beat doing nothing."""
    rows_NP, targets_N = np.array(rows), np.ones(len(rows))
    solution_P = nonnegative_least_squares(rows_NP, targets_N)
    assert np.all(np.isfinite(solution_P) & (solution_P >= 0))
    assert np.sum((rows_NP @ solution_P - targets_N) ** 2) <= len(rows) + 1e-9


@settings(max_examples=50, deadline=None)
@given(ROWS, st.floats(min_value=0.0, exclude_min=True, allow_infinity=False))
def test_a_fit_is_finite_or_refused(rows: list[list[float]], measured_s: float) -> None:
    """Whatever was measured, no cost and no error comes out that is not a number."""
    equations = [Equation("any", (a, b, c, d), measured_s) for a, b, c, d in rows]
    try:
        fit = fit_tier(equations, equations, max_batch=1, max_prompt_tokens=1)
    except FitError:
        return
    costs = dataclasses.astuple(fit.profile)[:3]
    assert np.isfinite([*costs, fit.median_error, fit.mean_error, fit.largest_error]).all()


@pytest.mark.parametrize("measured_s", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_is_none_is_refused(measured_s: float) -> None:
    """One measured time that no clock can have shown spoils the fit, so there is none."""
    equations = [Equation("any", (1.0, k, k, k), 0.1 * k) for k in (1.0, 2.0, 3.0)]
    broken = [*equations, Equation("any", (1.0, 1.0, 1.0, 1.0), measured_s)]
    with pytest.raises(FitError, match="must be from"):
        fit_tier(broken, equations, max_batch=1, max_prompt_tokens=1)


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
