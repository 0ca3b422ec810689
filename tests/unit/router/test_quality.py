"""Quality of tiers, estimated from what clients report."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.quality import (
    MEMORY,
    MOST_STEP,
    PRIOR,
    RANGE,
    QualityEstimator,
    Ratings,
    joined,
    no_ratings,
    since,
)

TABLE_KT = np.array([[0.5, 0.8, 1.0], [0.7, 0.9, 1.0]])
SMALL, MIDDLE, LARGE = range(3)


def estimator() -> QualityEstimator:
    """One that nobody has reported to."""
    return QualityEstimator(TABLE_KT)


def test_without_reports_the_table_holds() -> None:
    """And it says how little is known."""
    found = estimator()
    np.testing.assert_array_equal(found.quality_KT, TABLE_KT)
    assert (found.error_KT()[:, :LARGE] > 0.05).all()
    assert (found.error_KT()[:, LARGE] == 0.0).all()


def test_reports_move_it_to_what_they_say() -> None:
    """Of their own task and tier alone; the more there are, the surer."""
    found = estimator()
    before = found.error_KT()[0, SMALL]
    for _ in range(600):
        found.observe(0, SMALL, 0.65)
    assert found.quality_KT[0, SMALL] == pytest.approx(0.65, abs=0.03)
    assert found.error_KT()[0, SMALL] < before
    rest_KT = TABLE_KT.copy()
    rest_KT[0, SMALL] = found.quality_KT[0, SMALL]
    np.testing.assert_array_equal(found.quality_KT, rest_KT)


def test_a_few_reports_say_little() -> None:
    """The table counts as fifty of them."""
    found = estimator()
    for _ in range(5):
        found.observe(0, SMALL, 1.0)
    assert 0.5 < found.quality_KT[0, SMALL] < 0.5 + 5.0 * 0.5 / PRIOR


def test_the_largest_tier_is_what_others_are_measured_by() -> None:
    """Whoever finds every answer half as good says nothing about one tier beside another."""
    found = estimator()
    for _ in range(2_000):
        for tier in range(3):
            found.observe(0, tier, 0.5 * TABLE_KT[0, tier])
    assert found.quality_KT[0] == pytest.approx(TABLE_KT[0], abs=0.01)
    assert found.quality_KT[0, LARGE] == 1.0


def test_what_drifts_is_followed() -> None:
    """Only about the last five hundred reports count."""
    found = estimator()
    for score, expected in ((0.65, 0.65), (0.4, 0.41)):
        for _ in range(2_500):
            found.observe(0, SMALL, score)
        assert found.quality_KT[0, SMALL] == pytest.approx(expected, abs=0.02)


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 2), st.floats(0.0, 1.0)),
        max_size=60,
    ),
    st.integers(0, 40),
)
def test_one_report_moves_little_and_all_together_not_far(
    reports: list[tuple[int, int, float]], times: int
) -> None:
    """Whatever they say, however often."""
    found = estimator()
    for report in reports * (1 + times):
        before_KT = found.quality_KT.copy()
        found.observe(*report)
        assert np.abs(found.quality_KT - before_KT).max() <= MOST_STEP + 1e-12
    assert (found.quality_KT >= np.maximum(TABLE_KT - RANGE, 0.0) - 1e-12).all()
    assert (found.quality_KT <= np.minimum(TABLE_KT + RANGE, 1.0) + 1e-12).all()
    assert np.isfinite(found.error_KT()).all()


def test_another_table_keeps_what_was_reported() -> None:
    """A task may be added; where the table's value is another one, reports count beside that."""
    found = estimator()
    for _ in range(200):
        found.observe(0, SMALL, 0.6)
    learned = found.quality_KT[0, SMALL]
    found.follow(np.array([[0.5, 0.8, 1.0], [0.6, 0.9, 1.0], [0.3, 0.4, 1.0]]))
    assert found.quality_KT[0, SMALL] == pytest.approx(learned, abs=1e-9)
    assert found.quality_KT[1, SMALL] == 0.6
    assert found.quality_KT[2].tolist() == [0.3, 0.4, 1.0]
    assert found.report_count_KT.sum() == 200


def test_a_table_of_zeros_stays_one() -> None:
    """There is nothing to measure tiers by."""
    found = QualityEstimator(np.zeros((1, 2)))
    found.observe(0, 0, 0.9)
    assert found.quality_KT.tolist() == [[0.0, 0.0]]
    assert np.isfinite(found.error_KT()).all()


def told(*scores: float) -> Ratings:
    """Returns plain means of what one process heard of one tier."""
    array = np.array(scores or [0.0])
    return Ratings(*map(np.atleast_1d, (float(len(scores)), array.mean(), (array**2).mean())))


@given(st.lists(st.floats(0.0, 1.0), max_size=60), st.lists(st.floats(0.0, 1.0), max_size=60))
def test_what_came_later_is_joined_as_if_one_had_heard_it_all(
    first: list[float], then: list[float]
) -> None:
    """A process tells means of all it heard; only what is new counts."""
    found = joined(joined(no_ratings(1), told(*first)), since(told(*first), told(*first, *then)))
    for ours, one in zip(found, joined(no_ratings(1), told(*first, *then)), strict=True):
        np.testing.assert_allclose(ours, one, atol=1e-9)


def test_beyond_the_memory_joined_means_forget_as_one_by_one() -> None:
    """The order among those that came together is all that is lost."""
    one = estimator()
    found, rng = no_ratings(1), np.random.default_rng(1)
    for _ in range(150):
        scores = (rng.random(10) < 0.4).astype(float)
        for score in scores:
            one.observe(0, SMALL, score)
        found = joined(found, told(*scores))
    assert found.answers[0] == one.report_count_KT[0, SMALL] == 1_500
    assert found.mean[0] == pytest.approx(one._mean_KT[0, SMALL], abs=0.003)
    drifted = joined(found, told(*[1.0] * int(MEMORY)))
    assert drifted.mean[0] > 0.7


def test_however_many_come_at_once_something_stays() -> None:
    """Who claims endless reports does not take all from those before."""
    before = joined(no_ratings(1), told(*[0.2] * 500))
    claimed = Ratings(*np.array([[2.0**53], [1.0], [1.0]]))
    after = joined(before, claimed)
    assert 0.2 < after.mean[0] < 0.75
    np.testing.assert_array_equal(joined(before, no_ratings(1)).mean, before.mean)


def test_what_others_heard_moves_an_estimate_as_own_reports_do() -> None:
    """All at once, by what each report may move; nothing new moves nothing."""
    own, heard = estimator(), estimator()
    ratings = no_ratings(2, 3)
    for _ in range(3):
        own.observe(0, SMALL, 1.0)
    ratings.answers[0, SMALL], ratings.mean[0, SMALL], ratings.square[0, SMALL] = 3.0, 1.0, 1.0
    heard.hear(ratings)
    np.testing.assert_allclose(heard.quality_KT, own.quality_KT)
    np.testing.assert_allclose(heard.error_KT(), own.error_KT())
    before = heard.quality_KT.copy()
    ratings.mean[0, SMALL] = 0.0
    heard.hear(ratings)
    np.testing.assert_array_equal(heard.quality_KT, before)
    ratings.answers[0, SMALL] = 4.0
    heard.hear(ratings)
    assert heard.quality_KT[0, SMALL] == pytest.approx(before[0, SMALL] - MOST_STEP)
    ratings.answers[0, SMALL] = 4_000.0
    heard.hear(ratings)
    assert heard.quality_KT[0, SMALL] == pytest.approx(TABLE_KT[0, SMALL] - RANGE)
