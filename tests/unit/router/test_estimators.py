"""Arrival rate and output length estimates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.estimators import (
    BurstinessEstimator,
    OutputLengthPredictor,
    RateEstimator,
    SlownessEstimator,
)


@given(rate=st.floats(min_value=1.0, max_value=2000.0))
def test_a_steady_rate_is_found(rate: float) -> None:
    """After several time constants the mean over one interval of arrivals equals the true rate."""
    estimator = RateEstimator(1.0)
    now_s = 0.0
    while now_s < 6.0:
        now_s += 1.0 / rate
        estimator.observe(now_s)
    middle_s = now_s + 0.5 / rate
    assert estimator.rate_rps(middle_s) == pytest.approx(rate, rel=0.05)


def test_the_estimate_is_corrected_while_it_warms_up() -> None:
    """Half a time constant after the start a steady rate already reads right."""
    estimator = RateEstimator(10.0)
    for i in range(1, 501):
        estimator.observe(i * 0.01)
    assert estimator.rate_rps(5.0) == pytest.approx(100.0, rel=0.02)


def test_a_start_under_full_load_is_known_soon() -> None:
    """A router that has been up for long and gets 5,000 requests/s at once sees them in 20 ms."""
    estimator = RateEstimator(0.2)
    assert estimator.rate_rps(99.0) == 0.0
    for i in range(101):
        estimator.observe(100.0 + i * 0.0002)
    assert estimator.rate_rps(100.02) == pytest.approx(5000.0, rel=0.1)


def test_the_first_arrival_is_no_endless_rate() -> None:
    """It reads as one in about a tenth of the time constant."""
    estimator = RateEstimator(0.2)
    estimator.observe(7.0)
    assert 50.0 < estimator.rate_rps(7.0) < 55.0


def test_silence_lets_the_rate_fall() -> None:
    """Five time constants without arrivals leave under a hundredth."""
    estimator = RateEstimator(1.0)
    for i in range(1, 1001):
        estimator.observe(i * 0.01)
    before = estimator.rate_rps(10.0)
    assert estimator.rate_rps(15.0) < 0.01 * before


def test_a_clock_that_steps_back_changes_nothing() -> None:
    """An earlier stamp than the last neither decays nor inflates."""
    estimator = RateEstimator(1.0)
    estimator.observe(5.0, 10)
    assert estimator.rate_rps(4.0) == estimator.rate_rps(5.0)


def test_output_length_starts_at_its_prior_and_learns() -> None:
    """The prediction moves from the prior to what answers show, and obeys the request's limit."""
    predictor = OutputLengthPredictor({"sort": 8.0}, weight=0.1)
    assert predictor.predict("sort", 100) == 8.0
    for _ in range(100):
        predictor.observe("sort", 20)
    assert predictor.predict("sort", 100) == pytest.approx(20.0, abs=0.1)
    assert predictor.predict("sort", 5) == 5.0


def test_slowness_is_found_and_survives_a_stray_answer() -> None:
    """A window of answers at 1.5 times the profile is found; one hundredfold answer adds little."""
    estimator = SlownessEstimator(window=40)
    for _ in range(200):
        estimator.observe(0.15, 0.10)
    assert estimator.slowness == pytest.approx(1.5, rel=0.01)
    estimator.observe(10.0, 0.10)
    assert estimator.slowness < 1.6


def test_a_cut_off_teaches_only_that_it_was_slower() -> None:
    """A request cut off early says nothing; one cut off late raises the estimate."""
    estimator = SlownessEstimator()
    estimator.observe(0.05, 0.10, finished=False)
    assert estimator.slowness == 1.0
    for _ in range(100):
        estimator.observe(0.30, 0.10, finished=False)
    assert estimator.slowness == pytest.approx(3.0, rel=0.05)


@given(st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(0.0, 1e6), st.booleans()), max_size=50))
def test_slowness_stays_within_its_limits(answers: list[tuple[float, float, bool]]) -> None:
    """Whatever is observed, the factor keeps between its bounds."""
    estimator = SlownessEstimator()
    for taken_s, profile_s, finished in answers:
        estimator.observe(taken_s, profile_s, finished=finished)
    assert 0.499 <= estimator.slowness <= 4.001


@pytest.mark.parametrize("squared_cv", [1.0, 16.0])
def test_burstiness_is_the_squared_cv_of_gaps(squared_cv: float) -> None:
    """Over many arrivals the estimate averages to the process's own figure."""
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(40):
        estimator, now_s = BurstinessEstimator(0.0), 0.0
        assert estimator.burstiness == 1.0
        for gap_s in rng.gamma(1.0 / squared_cv, squared_cv, 400):
            now_s += gap_s
            estimator.observe(now_s)
        seen.append(estimator.burstiness)
    assert np.mean(seen) == pytest.approx(squared_cv, rel=0.25)


def test_a_clock_has_no_burstiness() -> None:
    """Arrivals at even intervals read 0, whatever the rate."""
    estimator = BurstinessEstimator(0.0)
    for i in range(1, 300):
        estimator.observe(0.25 * i)
    assert estimator.burstiness == pytest.approx(0.0, abs=1e-9)
