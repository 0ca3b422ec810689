"""Quantiles of times counted in buckets."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
import pytest

from services.common.latency_buckets import BOUNDS_S, BUCKET_COUNT, quantile_s


def counted(times_s: list[float]) -> list[int]:
    """Times in buckets."""
    counts = [0] * BUCKET_COUNT
    for time_s in times_s:
        counts[bisect_left(BOUNDS_S, time_s)] += 1
    return counts


@pytest.mark.parametrize("quantile", [0.5, 0.99])
def test_a_quantile_is_known_to_a_twentieth(quantile: float) -> None:
    """Whatever the times are."""
    times_s = np.random.default_rng(1).lognormal(math.log(0.08), 0.7, 5_000)
    exact = float(np.quantile(times_s, quantile))
    assert quantile_s(counted(times_s.tolist()), 0, quantile) == pytest.approx(exact, rel=0.05)


def test_requests_without_an_answer_count_as_longer() -> None:
    """Two of a hundred cut off: the median is known, the 99th percentile is beyond every answer."""
    counts = counted([0.1] * 98)
    assert quantile_s(counts, 2, 0.5) == pytest.approx(0.1, rel=0.1)
    assert quantile_s(counts, 2, 0.99) == math.inf
    assert quantile_s(counted([100.0]), 0, 0.5) == math.inf
    assert quantile_s(counted([]), 0, 0.5) is None
    assert quantile_s(counted([]), 3, 0.5) == math.inf
