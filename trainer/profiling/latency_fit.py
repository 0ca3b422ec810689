"""From measured times to a tier's costs: robust least squares without negative parameters.

Shape letters: N equations, P parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from router.profile import TierProfile

SMALLEST_STEP_S = 1e-6
ROBUST_ROUNDS = 12
HUBER = 1.345
"""Residuals beyond this many robust standard deviations count linearly (Huber, 1964)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """A tier's profile with how well it explains what was measured.

    Attributes:
        profile: The parameters.
        sample_count: Measurements it was fitted to.
        median_error: Median of |predicted - measured| / measured.
        mean_error: |sum predicted - sum measured| / sum measured.
        largest_error: Largest of |predicted - measured| / measured; NaN where single
            measurements say little.
    """

    profile: TierProfile
    sample_count: int
    median_error: float
    mean_error: float
    largest_error: float = float("nan")


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
    """
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
    """Least squares with no negative parameter; rows [N, P], targets [N], solution [P]."""
    # Imported here: every other command starts faster without scipy.
    from scipy.optimize import nnls

    solution_P, _ = nnls(rows_NP, targets_N)
    return np.asarray(solution_P, dtype=np.float64)


def ordered(fits: Mapping[str, Fit], tiers: Sequence[str]) -> dict[str, Fit]:
    """Makes step costs rise with the tiers, as a profile must; noise may have swapped neighbours.

    A tier whose step came out below that of a smaller one gets the smaller one's.
    """
    done: dict[str, Fit] = {}
    floor_s = 0.0
    for tier in tiers:
        fit = fits[tier]
        if fit.profile.step_s < floor_s:
            fit = dataclasses.replace(fit, profile=dataclasses.replace(fit.profile, step_s=floor_s))
        floor_s = fit.profile.step_s
        done[tier] = fit
    return done
