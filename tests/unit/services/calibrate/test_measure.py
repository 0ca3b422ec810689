"""Measured quality and latency: intervals, files, and what the fit makes of answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.catalog import parse_quality
from router.profile import TierProfile, parse_profile
from services.calibrate.calibration import Calibration, PairCheck
from services.calibrate.fit import Measured, fit_tier
from services.calibrate.quality import QualityMeasurement, Score
from services.calibrate.tiers import tiers_of_entries
from services.local.settings_file import EndpointEntry
from trainer.profiling.latency_fit import Fit, nonnegative_least_squares, ordered


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
            row = Measured(1.0, 0.5, output, prompt, batch, 8.0, 20.0).row()
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
    fit = fit_tier(answers(truth), max_batch=8, max_prompt_tokens=64)
    assert fit.profile.step_s == pytest.approx(step_s, rel=1e-3, abs=1e-6)
    assert fit.profile.per_sequence_s == pytest.approx(per_sequence_s, rel=1e-3, abs=1e-7)
    assert fit.profile.per_prompt_token_s == pytest.approx(per_prompt_token_s, rel=1e-2, abs=1e-8)
    assert fit.median_error < 1e-6


def test_noise_shows_in_the_error_and_not_as_negative_costs() -> None:
    """Ten percent of noise gives about ten percent of error, and no parameter below zero."""
    truth = TierProfile(0.002, 0.0003, 0.0, overhead_s=0.0)
    fit = fit_tier(answers(truth, noise=0.1), max_batch=8, max_prompt_tokens=64)
    assert 0.03 < fit.median_error < 0.12
    assert fit.mean_error < 0.05
    assert fit.profile.per_prompt_token_s >= 0
    assert fit.profile.overhead_s >= 0
    assert fit.profile.step_s + 4 * fit.profile.per_sequence_s == pytest.approx(0.0032, rel=0.15)


def test_answers_that_something_delayed_hardly_count() -> None:
    """One answer in eight takes five times as long, as on a machine with other work."""
    truth = TierProfile(0.0004, 0.0002, 0.00001, overhead_s=0.0015)
    fit = fit_tier(answers(truth, noise=0.05, outliers=0.12), max_batch=8, max_prompt_tokens=64)
    assert fit.profile.step_s + fit.profile.per_sequence_s == pytest.approx(0.0006, rel=0.25)
    assert fit.profile.per_sequence_s == pytest.approx(0.0002, rel=0.25)
    assert fit.profile.overhead_s == pytest.approx(0.0015, rel=0.4)


def test_too_few_answers_are_an_error() -> None:
    """Four parameters need at least four answers."""
    with pytest.raises(ValueError, match="at least 4"):
        fit_tier([], max_batch=1, max_prompt_tokens=1)


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
    return Fit(TierProfile(step_s, 0.0, 0.0), 10, 0.05, 0.01)


def test_step_costs_rise_with_the_tiers() -> None:
    """A larger tier that came out cheaper gets the smaller one's step."""
    fits = ordered(
        {"small": fit_of(0.002), "medium": fit_of(0.001), "large": fit_of(0.003)},
        ("small", "medium", "large"),
    )
    assert [fit.profile.step_s for fit in fits.values()] == [0.002, 0.002, 0.003]


def test_a_calibration_is_a_profile_file() -> None:
    """What is written is what the services read."""
    from router.profile import LatencyProfile

    fits = {"small": fit_of(0.001), "large": fit_of(0.002)}
    profiles = {name: fit.profile for name, fit in fits.items()}
    measured = Calibration(
        LatencyProfile("reference", "measured", profiles, 'a "quoted" card'), fits, (), {}, {}, 1.0
    )
    parsed = parse_profile(measured.to_toml(), "test", ("small", "large"))
    assert parsed.tiers["large"].step_s == 0.002
    assert parsed.source == "measured"


def test_a_pair_is_judged_by_its_worse_tier() -> None:
    """The largest relative error of the two counts."""
    assert PairCheck(("a", "b"), (0.1, 0.2), (0.11, 0.3)).error == pytest.approx(0.5)


@settings(deadline=None)  # the first example loads scipy
@given(st.integers(1, 2000), st.data())
def test_the_interval_holds_the_share(asked: int, data: st.DataObject) -> None:
    """The 95 % interval lies in 0 to 1 around the share."""
    score = Score(data.draw(st.integers(0, asked)), asked)
    low, high = score.interval
    assert 0 <= low <= score.share + 1e-12
    assert score.share - 1e-12 <= high <= 1


def test_the_interval_is_wilsons() -> None:
    """A value worked out by hand from the formula: 8 of 10."""
    low, high = Score(8, 10).interval
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)


def test_quality_is_standardised_by_the_largest_tier_and_readable_again() -> None:
    """The written file parses; a smaller tier that scored higher counts as 1.0."""
    measured = QualityMeasurement(
        ("small", "large"),
        {
            "sort": {"small": Score(40, 100), "large": Score(80, 100)},
            "recall": {"small": Score(90, 100), "large": Score(80, 100)},
            "none": {"small": Score(5, 100), "large": Score(0, 100)},
        },
    )
    table = parse_quality(measured.to_toml("reference", "Test."), "test")
    assert table.quality["sort"] == {"small": 0.5, "large": 1.0}
    assert table.quality["recall"] == {"small": 1.0, "large": 1.0}
    assert table.raw["sort"]["large"] == 0.8
    assert table.source == "measured"
    assert measured.to_json()["sort"]["small"]["examples"] == 100


def test_tiers_come_in_order_from_the_first_endpoint_that_serves_them() -> None:
    """One live tier per name, lowest quality first."""
    endpoints = [
        EndpointEntry("b", "127.0.0.1:2", "", ("large", "small"), {"large": "opt"}, ""),
        EndpointEntry("c", "127.0.0.1:3", "", ("small",), {}, ""),
    ]
    tiers = tiers_of_entries(endpoints, ("small", "medium", "large"))
    assert [(each.tier, each.model, each.endpoint) for each in tiers] == [
        ("small", "small", "b"),
        ("large", "opt", "b"),
    ]
