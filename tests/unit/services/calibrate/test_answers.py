"""What the fit makes of live answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.profile import TierProfile
from services.calibrate.answers import Measured, fit_answers
from trainer.profiling.latency_fit import FitError


def answers(
    profile: TierProfile, *, noise: float = 0.0, outliers: float = 0.0, seed: int = 0
) -> list[Measured]:
    """What a tier of this profile would answer, alone and in batches."""
    rng = np.random.default_rng(seed)
    made = []
    parameters = (
        profile.overhead_s,
        profile.step_s,
        profile.per_sequence_s,
        profile.per_prompt_token_s,
    )
    for batch in (1, 2, 4, 8):
        for _ in range(60):
            output, prompt = int(rng.integers(4, 12)), int(rng.integers(8, 32))
            row = Measured(1.0, 0.5, output, prompt, batch, 8.0, 20.0).whole().row
            total_s = float(np.dot(row, parameters))
            later = (0.0, output - 1, (output - 1) * batch, (batch - 1) * (output - 1) / 8 * 20)
            rest_s = float(np.dot(later, parameters))
            factor = float(np.exp(noise * rng.normal())) * (5.0 if rng.random() < outliers else 1.0)
            first_s = (total_s - rest_s) * factor
            made.append(
                Measured(first_s + rest_s * factor, first_s, output, prompt, batch, 8.0, 20.0)
            )
    return made


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-4, 1e-2), st.floats(1e-5, 3e-3), st.floats(1e-6, 3e-4), st.floats(1e-4, 5e-3))
def test_the_fit_finds_the_profile_that_made_the_answers(
    step_s: float, per_sequence_s: float, per_prompt_token_s: float, overhead_s: float
) -> None:
    """Without noise every parameter comes back."""
    truth = TierProfile(step_s, per_sequence_s, per_prompt_token_s, overhead_s=overhead_s)
    fit = fit_answers(answers(truth), max_batch=8, max_prompt_tokens=64)
    assert fit.profile.step_s == pytest.approx(step_s, rel=1e-3, abs=1e-6)
    assert fit.profile.per_sequence_s == pytest.approx(per_sequence_s, rel=1e-3, abs=1e-7)
    assert fit.profile.per_prompt_token_s == pytest.approx(per_prompt_token_s, rel=1e-2, abs=1e-8)
    assert fit.median_error < 1e-6


def test_noise_shows_in_the_error_and_not_as_negative_costs() -> None:
    """Ten percent of noise gives about ten percent of error, and no parameter below zero."""
    truth = TierProfile(0.002, 0.0003, 0.0, overhead_s=0.0)
    fit = fit_answers(answers(truth, noise=0.1), max_batch=8, max_prompt_tokens=64)
    assert 0.03 < fit.median_error < 0.12
    assert fit.mean_error < 0.05
    assert fit.profile.per_prompt_token_s >= 0
    assert fit.profile.overhead_s >= 0
    assert fit.profile.step_s + 4 * fit.profile.per_sequence_s == pytest.approx(0.0032, rel=0.15)


def test_answers_that_something_delayed_hardly_count() -> None:
    """One answer in eight takes five times as long, as on a machine with other work."""
    truth = TierProfile(0.0004, 0.0002, 0.00001, overhead_s=0.0015)
    fit = fit_answers(answers(truth, noise=0.05, outliers=0.12), max_batch=8, max_prompt_tokens=64)
    assert fit.profile.step_s + fit.profile.per_sequence_s == pytest.approx(0.0006, rel=0.25)
    assert fit.profile.per_sequence_s == pytest.approx(0.0002, rel=0.25)
    assert fit.profile.overhead_s == pytest.approx(0.0015, rel=0.4)


def test_too_few_answers_are_an_error() -> None:
    """Four parameters need at least four answers."""
    with pytest.raises(FitError, match="at least 4"):
        fit_answers([], max_batch=1, max_prompt_tokens=1)
