"""Smooth goodput: what a late answer counts."""

from __future__ import annotations

import math

import pytest

from router.smooth import DECAY_S, share


@pytest.mark.parametrize(
    ("lateness_s", "counts"),
    [(-1.0, 1.0), (0.0, 1.0), (DECAY_S, math.exp(-1.0)), (3 * DECAY_S, math.exp(-3.0))],
)
def test_lateness_is_discounted_and_earliness_is_not_rewarded(
    lateness_s: float, counts: float
) -> None:
    """In time is in time; what is late counts less and less, and never nothing."""
    assert share(lateness_s) == pytest.approx(counts)


def test_what_is_very_late_counts_nothing_and_does_not_fail() -> None:
    """An hour is beyond what a float tells from 0."""
    assert share(3600.0) == 0.0
