"""How a router learns that answers come slower than predicted, and what it makes of it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import slowdown
from router.features import FEATURE_COUNT, compute_features, feature_scratch
from router.ledger import zero_load
from router.policies.dqn import PRICE_DEFAULTS_P
from router.slowdown import Slowdown
from tests.unit.router import fleets

WINDOW_S = 0.4
ENDS = st.lists(
    st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 10.0), st.floats(-1.0, 10.0)), max_size=200
)


def learned(ratio: float, ends: int = 500, now_s: float = 10.0) -> Slowdown:
    """Returns what a deadline of ends that took `ratio` times their prediction teaches."""
    found = Slowdown(compared_s=now_s - WINDOW_S)
    for k in range(ends):
        at_s = now_s - WINDOW_S * (1.0 - (k + 1) / ends)
        slowdown.compare(found, at_s, WINDOW_S, 0.1 * ratio, 0.1)
    return found


@pytest.mark.parametrize("ratio", [1.1, 1.3, 1.8])
def test_it_finds_by_how_much_devices_are_slower(ratio: float) -> None:
    """Hundreds of ends leave hardly any doubt."""
    assert slowdown.factor(learned(ratio), 10.0, WINDOW_S) == pytest.approx(
        ratio / slowdown.ORDINARY, rel=0.05
    )


def test_a_few_ends_tell_little() -> None:
    """Three stragglers after a quiet night do not send everything to the smallest tier."""
    assert slowdown.factor(learned(2.0, ends=3), 10.0, WINDOW_S) < 1.15


def test_it_forgets_by_the_deadline() -> None:
    """With nothing new to compare, doubt takes over again."""
    found = learned(1.5)
    factors = [slowdown.factor(found, 10.0 + k * WINDOW_S, WINDOW_S) for k in range(24)]
    assert all(later <= sooner for sooner, later in itertools.pairwise(factors))
    assert factors[0] > 1.3
    assert factors[-1] < 1.05


def test_faster_than_predicted_changes_nothing() -> None:
    """Light load is no reason to plan tighter."""
    assert slowdown.factor(learned(0.5), 10.0, WINDOW_S) == 1.0


@given(ENDS)
def test_the_factor_stays_in_its_range(ends: list[tuple[float, float, float]]) -> None:
    """No sequence of ends, predictions of nothing among them, takes it out of 1 to 2."""
    found, now_s = Slowdown(), 0.0
    for gap_s, observed_s, predicted_s in ends:
        now_s += gap_s
        slowdown.compare(found, now_s, WINDOW_S, observed_s, predicted_s)
        assert 1.0 <= slowdown.factor(found, now_s, WINDOW_S) <= slowdown.LARGEST
        assert slowdown.factor(found, now_s, 0.0) >= 1.0


def test_numbers_that_are_none_teach_nothing() -> None:
    """A clock that failed must not poison the mean."""
    found = Slowdown()
    for observed_s, predicted_s in ((math.nan, 0.1), (0.1, math.nan), (0.1, 0.0), (-1.0, 0.1)):
        slowdown.compare(found, 1.0, WINDOW_S, observed_s, predicted_s)
    assert found == Slowdown()


def test_a_stretched_query_reads_as_one_to_slower_devices() -> None:
    """The features of a query stretched by f are those of a fleet whose times are f times as long.

    Except the score that the network corrects, which does not know of the slowdown.
    """
    told = fleets.fleet()
    slower = told.with_slowness(np.full(len(told.devices), 1.5))
    rows = []
    for fleet, factor in ((told, 1.5), (slower, 1.0)):
        out_CF = np.zeros((fleet.candidate_count, FEATURE_COUNT), np.float32)
        rng = np.random.default_rng(5)
        load = fleets.random_load(rng, fleet.candidate_count, 20.0)
        query = fleets.QUERY._replace(rate_short_rps=300.0, rate_long_rps=280.0, slowdown=factor)
        compute_features(
            fleet.arrays,
            load,
            zero_load(fleet.candidate_count),
            np.ones(fleet.candidate_count, bool),
            query,
            PRICE_DEFAULTS_P,
            feature_scratch(fleet.candidate_count, np.zeros),
            out_CF,
        )
        rows.append(out_CF)
    by_price = slice(25, 29)
    for out_CF in rows:
        out_CF[:, by_price] = 0.0
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-4, atol=1e-5)
