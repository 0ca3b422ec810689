"""Times of answers in buckets that add up over processes, and quantiles of what was added up.

Bounds grow by the eighth root of two, so that a quantile is known to about 4 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

_PER_OCTAVE = 8
_SHORTEST_S = 0.001
_OCTAVES = 16
BOUNDS_S: tuple[float, ...] = tuple(
    _SHORTEST_S * 2.0 ** (index / _PER_OCTAVE) for index in range(_OCTAVES * _PER_OCTAVE + 1)
)
"""Upper bounds, 1 ms to 66 s; one more bucket holds what took longer."""
BUCKET_COUNT = len(BOUNDS_S) + 1


def quantile_s(counts: Sequence[float], beyond: float, quantile: float) -> float | None:
    """Returns a quantile in seconds; infinite among what took longer, None if there is nothing.

    Args:
        counts: Answers per bucket.
        beyond: Requests without an answer, which count as longer than every answer.
        quantile: 0 to 1.
    """
    total = sum(counts) + beyond
    if total <= 0:
        return None
    rank = quantile * total
    before = 0.0
    for index, upto in enumerate(accumulate(counts)):
        if upto >= rank and upto > before:
            if index == len(BOUNDS_S):
                return math.inf
            share = (rank - before) / (upto - before)
            return float(BOUNDS_S[index] * 2.0 ** ((share - 1.0) / _PER_OCTAVE))
        before = upto
    return math.inf
