"""Estimates of output lengths and of slow devices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.estimators import OutputLengthPredictor, SlownessEstimator


def test_output_length_starts_at_its_prior_and_learns() -> None:
    """The prediction moves from the prior to what answers show, and obeys the request's limit."""
    predictor = OutputLengthPredictor({"sort": 8.0})
    assert predictor.predict("sort", 100) == 8.0
    for _ in range(500):
        predictor.observe("sort", 20)
    assert predictor.predict("sort", 100) == pytest.approx(20.0, abs=0.1)
    assert predictor.predict("sort", 5) == 5.0


def test_an_answer_that_its_limit_ended_is_no_short_answer() -> None:
    """It teaches nothing if it is shorter than the mean, seen or claimed; a longer one does."""
    predictor = OutputLengthPredictor({"sort": 60.0})
    for _ in range(500):
        predictor.observe("sort", 4, limit=4)
        predictor.observe_claim("sort", 4, limit=4)
    assert predictor.predict("sort", 4) == 4.0
    assert predictor.predict("sort", 1_000) == 60.0
    for _ in range(500):
        predictor.observe("sort", 100, limit=100)
    assert predictor.predict("sort", 1_000) == pytest.approx(100.0, abs=0.1)
    predictor.observe("sort", 4, limit=5)  # that was all it had to say
    assert predictor.predict("sort", 1_000) == pytest.approx(98.0, abs=0.1)


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


@given(st.lists(st.integers(0, 2**31 - 1), max_size=300))
def test_claimed_lengths_double_or_halve_a_prediction_at_most(claims: list[int]) -> None:
    """Whatever is claimed and however often; each claim alone moves it by two hundredths."""
    predictor = OutputLengthPredictor({"sort": 1_000.0})
    for claim in claims:
        before = predictor.predict("sort", 10_000)
        predictor.observe_claim("sort", claim)
        assert abs(predictor.predict("sort", 10_000) - before) <= 0.021 * 1_000.0 + 1.0
    assert 500.0 <= predictor.predict("sort", 10_000) <= 2_000.0


def test_seen_lengths_draw_a_prediction_back_from_what_was_claimed() -> None:
    """Answers that the router saw itself count in the end."""
    predictor = OutputLengthPredictor({"sort": 100.0})
    for _ in range(500):
        predictor.observe_claim("sort", 10_000)
    for _ in range(500):
        predictor.observe("sort", 100)
    assert predictor.predict("sort", 10_000) == 100.0
