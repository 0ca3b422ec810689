"""From measured times to a tier's costs: robust least squares without negative parameters.

Shape letters: N equations, P parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from router.profile import TierProfile

SMALLEST_STEP_S = 1e-6
ROBUST_ROUNDS = 12
SMALLEST_COLUMN = 1e-150
"""A column of equations that nowhere exceeds this says nothing of its parameter: its squares are no
numbers, and what it is divided by would not be one either."""
TIMES_S = (1e-12, 1e12)
"""Shortest and longest time that can have been measured; sums and ratios of these are numbers."""
HUBER = 1.345
"""Residuals beyond this many robust standard deviations count linearly (Huber, 1964)."""


class FitError(ValueError):
    """Nothing finite fits what was measured; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """A tier's profile with how well it explains what was measured.

    Attributes:
        profile: The parameters.
        sample_count: Measurements it was fitted to.
        median_error: Median of |predicted - measured| / measured.
        mean_error: |sum predicted - sum measured| / sum measured.
        largest_error: Largest of |predicted - measured| / measured.
    """

    profile: TierProfile
    sample_count: int
    median_error: float
    mean_error: float
    largest_error: float


@dataclasses.dataclass(frozen=True, slots=True)
class Equation:
    """A measured time and how often each cost is in it.

    Attributes:
        kind: What was measured. Kinds count alike, however many equations there are of each.
        row: Multiples of ``overhead_s``, ``step_s``, ``per_sequence_s``, ``per_prompt_token_s``.
        measured_s: The time, seconds, > 0.
    """

    kind: str
    row: tuple[float, float, float, float]
    measured_s: float


def fit_tier(
    equations: Sequence[Equation],
    checked: Sequence[Equation],
    *,
    max_batch: int,
    max_prompt_tokens: int,
) -> Fit:
    """Fits one tier's costs, none below zero, to relative errors.

    Measurements that something else on the machine delayed lose weight by Huber's rule.

    Args:
        equations: What the costs have to explain.
        checked: What the errors are told of; may be the same.
        max_batch: Most sequences in one iteration.
        max_prompt_tokens: Most prompt tokens admitted in one iteration.

    Raises:
        FitError: A measured time is outside TIMES_S, or no finite cost explains them.
    """
    kinds = Counter(each.kind for each in equations)
    solution_P = robust_least_squares(
        np.array([each.row for each in equations]),
        np.array([each.measured_s for each in equations]),
        np.array([1.0 / kinds[each.kind] for each in equations]),
    )
    overhead_s, step_s, per_sequence_s, per_prompt_token_s = (float(each) for each in solution_P)
    measured_N = np.array([each.measured_s for each in checked])
    predicted_N = np.array([each.row for each in checked]) @ solution_P
    _check_times(measured_N)
    errors_N = np.abs(predicted_N - measured_N) / measured_N
    return Fit(
        profile=TierProfile(
            step_s=max(SMALLEST_STEP_S, step_s),
            per_sequence_s=per_sequence_s,
            per_prompt_token_s=per_prompt_token_s,
            max_batch=max_batch,
            max_prompt_tokens_per_step=max_prompt_tokens,
            overhead_s=overhead_s,
        ),
        sample_count=len(checked),
        median_error=float(np.median(errors_N)),
        mean_error=float(abs(predicted_N.sum() - measured_N.sum()) / measured_N.sum()),
        largest_error=float(errors_N.max()),
    )


def robust_least_squares(
    rows_NP: NDArray[np.float64], targets_N: NDArray[np.float64], shares_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Solves rows x parameters = targets by reweighting until outliers count little.

    Errors are relative to the prediction: relative to the measured time itself, slow answers
    would count less than quick ones and every cost would come out too low.

    Args:
        rows_NP: What each parameter is multiplied with.
        targets_N: Measured times, seconds, > 0.
        shares_N: Weight of each equation before outliers lose theirs, > 0.

    Raises:
        FitError: A target is outside TIMES_S, or there is no finite solution.
    """
    _check_times(targets_N)
    sizes_N = np.full(len(targets_N), float(np.median(targets_N)))
    weights_N = shares_N
    solution_P = np.zeros(rows_NP.shape[1])
    for _ in range(ROBUST_ROUNDS):
        root_N = np.sqrt(weights_N) / sizes_N
        solution_P = nonnegative_least_squares(rows_NP * root_N[:, None], targets_N * root_N)
        predicted_N = rows_NP @ solution_P
        sizes_N = np.maximum(predicted_N, 0.05 * targets_N)
        distance_N = np.abs(targets_N - predicted_N) / sizes_N
        scale = max(1e-9, 1.4826 * float(np.median(distance_N)))
        weights_N = shares_N * np.minimum(1.0, HUBER * scale / np.maximum(distance_N, 1e-12))
    return solution_P


def nonnegative_least_squares(
    rows_NP: NDArray[np.float64], targets_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least squares with no negative parameter; rows [N, P], targets [N], solution [P].

    Raises:
        FitError: Rows or targets are not finite, or the solution is not.
    """
    # Imported here: every other command starts faster without scipy.
    from scipy.optimize import nnls

    if not (np.isfinite(rows_NP).all() and np.isfinite(targets_N).all()):
        raise FitError("an equation of the fit is not finite")
    # Columns of one size: the solver squares them, and costs lie many powers of ten apart.
    size_P = np.abs(rows_NP).max(axis=0, initial=0.0)
    told_P = size_P > SMALLEST_COLUMN
    solution_P = np.zeros(len(size_P))
    if not told_P.any():
        return solution_P  # the solver crashes on a matrix without columns
    scaled_P, _ = nnls(rows_NP[:, told_P] / size_P[told_P], targets_N)
    solution_P[told_P] = scaled_P / size_P[told_P]
    if not np.isfinite(solution_P).all():
        raise FitError("no finite cost explains what was measured")
    return solution_P


def _check_times(measured_N: NDArray[np.float64]) -> None:
    low_s, high_s = TIMES_S
    if not len(measured_N) or not ((measured_N >= low_s) & (measured_N <= high_s)).all():
        raise FitError(f"measured times must be from {low_s:g} s to {high_s:g} s")


def ordered(
    fits: Mapping[str, Fit], tiers: Sequence[str], kept: Mapping[str, TierProfile] | None = None
) -> dict[str, Fit]:
    """Puts fits in an order and makes step costs rise with it, as a profile must.

    A tier whose step came out below that of one before it gets that one's: noise may have swapped
    neighbours. What is no noise shows in how far the profile is off afterwards.

    Args:
        fits: by tier.
        tiers: the order, lowest quality first.
        kept: costs of other tiers among them, which rise with the order and stay as they are.
    """
    kept = kept or {}
    ceilings_s: dict[str, float] = {}
    ceiling_s = math.inf
    for tier in reversed(tiers):
        ceiling_s = min(ceiling_s, kept[tier].step_s) if tier in kept else ceiling_s
        ceilings_s[tier] = ceiling_s
    done: dict[str, Fit] = {}
    floor_s = 0.0
    for tier in tiers:
        if tier in kept:
            floor_s = kept[tier].step_s
            continue
        fit = fits[tier]
        step_s = min(max(floor_s, fit.profile.step_s), ceilings_s[tier])
        if step_s != fit.profile.step_s:
            fit = dataclasses.replace(fit, profile=dataclasses.replace(fit.profile, step_s=step_s))
        floor_s = step_s
        done[tier] = fit
    return done
