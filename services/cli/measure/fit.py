"""Least squares from measured answers to a latency profile."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from router.profile import TierProfile

SMALLEST_STEP_S = 1e-6
PARAMETERS = ("overhead_s", "step_s", "per_sequence_s", "per_prompt_token_s")


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """One answer under known conditions.

    Attributes:
        total_s: From sending to the end.
        output_tokens: Tokens of the answer, the one that ends it included: its iterations.
        prompt_tokens: Tokens of its prompt.
        batch: Sequences that ran beside and with it, itself included.
        mean_output_tokens: Mean answer length of the run: how often the others were replaced.
        mean_prompt_tokens: Mean prompt length of the run.
    """

    total_s: float
    output_tokens: float
    prompt_tokens: float
    batch: float
    mean_output_tokens: float
    mean_prompt_tokens: float

    def row(self) -> tuple[float, float, float, float]:
        """What each parameter is multiplied with; order of ``PARAMETERS``.

        While an answer of n tokens is made, n iterations pass. Each costs the step and every
        sequence in it. Its own prompt is worked off once; the other batch - 1 places change
        hands once per mean answer, and each newcomer's prompt is worked off meanwhile.
        """
        turnover = (self.batch - 1.0) * self.output_tokens / self.mean_output_tokens
        prompts = self.prompt_tokens + turnover * self.mean_prompt_tokens
        return 1.0, self.output_tokens, self.output_tokens * self.batch, prompts


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """A tier's profile with how well it explains what was measured.

    Attributes:
        profile: The parameters.
        sample_count: Answers it was fitted to.
        median_error: Median of |predicted - measured| / measured.
        mean_error: |sum predicted - sum measured| / sum measured.
    """

    profile: TierProfile
    sample_count: int
    median_error: float
    mean_error: float


def fit_tier(samples: Sequence[Measured], *, max_batch: int, max_prompt_tokens: int) -> Fit:
    """Fits one tier's parameters, none below zero, to the least squares of relative errors.

    Args:
        samples: Answers at several batch sizes and prompt lengths.
        max_batch: Most sequences in one iteration, from the tier's configuration.
        max_prompt_tokens: Most prompt tokens admitted in one iteration.

    Raises:
        ValueError: Fewer samples than parameters.
    """
    if len(samples) < len(PARAMETERS):
        raise ValueError(f"samples: at least {len(PARAMETERS)} are needed, got {len(samples)}")
    rows_NP = np.array([each.row() for each in samples])
    totals_N = np.array([each.total_s for each in samples])
    lowest_P = np.array([0.0, SMALLEST_STEP_S, 0.0, 0.0])
    solution_P = nonnegative_least_squares(rows_NP / totals_N[:, None], np.ones(len(totals_N)))
    solution_P = np.maximum(solution_P, lowest_P)
    predicted_N = rows_NP @ solution_P
    overhead, step, per_sequence, per_prompt = (float(value) for value in solution_P)
    profile = TierProfile(
        step_s=step,
        per_sequence_s=per_sequence,
        per_prompt_token_s=per_prompt,
        max_batch=max_batch,
        max_prompt_tokens_per_step=max_prompt_tokens,
        overhead_s=overhead,
    )
    return Fit(
        profile,
        len(samples),
        float(np.median(np.abs(predicted_N - totals_N) / totals_N)),
        float(abs(predicted_N.sum() - totals_N.sum()) / totals_N.sum()),
    )


def nonnegative_least_squares(
    rows_NP: NDArray[np.float64], targets_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least squares with no negative parameter, by trying every set of free parameters.

    With P parameters there are 2^P - 1 sets; P is 4 here.
    """
    parameter_count = rows_NP.shape[1]
    best_P, best_error = np.zeros(parameter_count), float(np.sum(targets_N**2))
    for mask in range(1, 2**parameter_count):
        free = [i for i in range(parameter_count) if mask >> i & 1]
        part, *_ = np.linalg.lstsq(rows_NP[:, free], targets_N, rcond=None)
        if np.any(part < 0):
            continue
        error = float(np.sum((rows_NP[:, free] @ part - targets_N) ** 2))
        if error < best_error - 1e-12:
            best_error = error
            best_P = np.zeros(parameter_count)
            best_P[free] = part
    return best_P


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
