"""Quality of tiers, estimated from what clients report."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.quality import MOST_STEP, PRIOR, RANGE, QualityEstimator

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
