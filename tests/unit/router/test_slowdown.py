"""How a router learns that answers come slower than predicted, and what it makes of it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import slowdown
from router.features import (
    BASE_COLUMN,
    FEATURE_COUNT,
    SHIFT_COLUMN,
    compute_features,
    feature_scratch,
)
from router.ledger import zero_load
from router.policies import scheduled_price
from router.policies.dqn import PRICE_DEFAULTS_P
from router.slowdown import Slowdown
from tests.unit.router import fleets
from tests.unit.router.policies.test_scheduled_price import parameters, table

WINDOW_S = 0.4
ENDS = st.lists(
    st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 10.0), st.floats(-1.0, 10.0), st.booleans()),
    max_size=200,
)


def learned(ratio: float, ends: int = 500, now_s: float = 10.0) -> Slowdown:
    """Returns what a deadline of ends that took `ratio` times their prediction teaches."""
    found = Slowdown(compared_s=now_s - WINDOW_S)
    for k in range(ends):
        at_s = now_s - WINDOW_S * (1.0 - (k + 1) / ends)
        slowdown.compare(found, at_s, WINDOW_S, 0.1 * ratio, 0.1, True)
    return found


@pytest.mark.parametrize("ratio", [1.2, 1.5, 1.8])
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
def test_the_factor_stays_in_its_range(ends: list[tuple[float, float, float, bool]]) -> None:
    """No sequence of ends, predictions of nothing among them, takes it out of 1 to 2."""
    found, now_s = Slowdown(), 0.0
    for gap_s, observed_s, predicted_s, finished in ends:
        now_s += gap_s
        slowdown.compare(found, now_s, WINDOW_S, observed_s, predicted_s, finished)
        assert 1.0 <= slowdown.factor(found, now_s, WINDOW_S) <= slowdown.LARGEST
        assert slowdown.factor(found, now_s, 0.0) >= 1.0


def test_numbers_that_are_none_teach_nothing() -> None:
    """A clock that failed must not poison the mean."""
    found = Slowdown()
    for observed_s, predicted_s in ((math.nan, 0.1), (0.1, math.nan), (0.1, 0.0), (-1.0, 0.1)):
        slowdown.compare(found, 1.0, WINDOW_S, observed_s, predicted_s, True)
    assert found == Slowdown()


def test_requests_cut_off_raise_the_factor_or_leave_it() -> None:
    """What never had a chance says nothing about devices; what took longer than it should, does."""
    hopeless = learned(1.3)
    for _ in range(500):
        slowdown.compare(hopeless, 10.0, WINDOW_S, 0.4, 0.6, False)
    assert hopeless == learned(1.3)
    for _ in range(500):
        slowdown.compare(hopeless, 10.0, WINDOW_S, 0.4, 0.2, False)
    assert slowdown.factor(hopeless, 10.0, WINDOW_S) > slowdown.factor(learned(1.3), 10.0, WINDOW_S)


def test_a_stretched_query_keeps_what_has_no_time_in_it() -> None:
    """Times shrink, rates grow, all else stays; without a slowdown it is the very same."""
    query = fleets.QUERY._replace(soft_decay_s=0.2, own_rate_rps=3.0, burstiness=4.0, own_share=0.5)
    assert slowdown.stretched(query) is query
    found = slowdown.stretched(query._replace(slowdown=2.0, state_age_s=0.1))
    assert found == query._replace(
        slack_s=query.slack_s / 2.0,
        soft_decay_s=0.1,
        state_age_s=0.05,
        rate_short_rps=2.0 * query.rate_short_rps,
        rate_long_rps=2.0 * query.rate_long_rps,
        own_rate_rps=6.0,
    )


@pytest.mark.parametrize("with_table", [True, False])
def test_a_stretched_query_reads_as_one_to_slower_devices(with_table: bool) -> None:
    """What the prior and the features say of it is what they say of devices f times as slow.

    Only the score that the network corrects does not know of the slowdown.
    """
    params_P = np.array(parameters(table()) if with_table else PRICE_DEFAULTS_P)
    told = fleets.fleet()
    slower = told.with_slowness(np.full(len(told.devices), 1.5))
    features, priors = [], []
    for fleet, factor in ((told, 1.5), (slower, 1.0)):
        out_CF = np.zeros((fleet.candidate_count, FEATURE_COUNT), np.float32)
        load = fleets.random_load(np.random.default_rng(5), fleet.candidate_count, 20.0)
        query = fleets.QUERY._replace(rate_short_rps=300.0, rate_long_rps=280.0, slowdown=factor)
        allowed_C = np.ones(fleet.candidate_count, bool)
        compute_features(
            fleet.arrays,
            load,
            zero_load(fleet.candidate_count),
            allowed_C,
            query,
            params_P,
            feature_scratch(fleet.candidate_count),
            False,
            out_CF,
        )
        priors.append(out_CF[:, BASE_COLUMN] + out_CF[:, SHIFT_COLUMN])
        out_CF[:, [BASE_COLUMN, SHIFT_COLUMN]] = 0.0
        features.append(out_CF)
        if with_table:
            args = (fleet.arrays, load, allowed_C, query, params_P)
            priors.append(fleets.compute_scores(scheduled_price.score, *args))
    np.testing.assert_allclose(features[0], features[1], rtol=1e-4, atol=1e-5)
    half = len(priors) // 2
    for one, other in zip(priors[:half], priors[half:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@given(ENDS, st.floats(0.0, 30.0))
def test_the_factor_is_that_of_the_mean(
    ends: list[tuple[float, float, float, bool]], later_s: float
) -> None:
    """To the last digit, also where it is 1 at first sight."""
    found = Slowdown()
    now_s = 0.0
    for step_s, observed_s, predicted_s, finished in ends:
        now_s += step_s
        slowdown.compare(found, now_s, WINDOW_S, observed_s, predicted_s, finished)
    now_s += later_s
    mean = slowdown.mean_ratio(found, now_s, WINDOW_S)
    expected = max(1.0, min(slowdown.LARGEST, mean / slowdown.ORDINARY))
    assert slowdown.factor(found, now_s, WINDOW_S) == expected
