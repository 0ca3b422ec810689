"""How iteration times spread."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.iteration_spread import MOST_CV, stretch


def test_without_a_spread_an_iteration_takes_exactly_its_mean() -> None:
    """Bit by bit, whatever is drawn."""
    assert {stretch(0.0, first, second) for first in (0.0, 0.3) for second in (0.0, 0.9)} == {1.0}


@pytest.mark.parametrize("cv", [0.05, 0.3, 1.0])
def test_mean_and_spread_are_those_of_the_profile(cv: float) -> None:
    """Over many draws, and the logarithms are normal: as many below the median as above."""
    rng = np.random.default_rng(1)
    found = np.array([stretch(cv, *pair) for pair in rng.random((100_000, 2))])
    assert found.mean() == pytest.approx(1.0, abs=0.02)
    assert found.std() == pytest.approx(cv, rel=0.05)
    assert np.median(found) == pytest.approx(1.0 / math.sqrt(1.0 + cv * cv), rel=0.02)


def test_every_draw_is_a_time() -> None:
    """Above zero and finite at the ends of what can be drawn, too."""
    last = 1.0 - 2.0**-53
    for cv in (1e-9, MOST_CV):
        for first in (0.0, last):
            for second in (0.0, 0.25, 0.5, last):
                assert 0.0 < stretch(cv, first, second) < math.inf
