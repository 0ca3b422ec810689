"""The shortlist: large fleets are decided on as if every candidate had been looked at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from router import features, shortlist
from router.bound import BoundDecision, Rule
from router.dqn.network import NOT_LISTED
from router.dqn.snapshot import zero_weights
from router.policies import price, scheduled_price
from router.policies.dqn import PRICE_DEFAULTS_P
from router.policies.table import DQN, ROW
from router.shortlist import BEST, LEAST_CANDIDATES, SAMPLES, Shortlist
from tests.unit.router import fleets
from tests.unit.router.policies.test_scheduled_price import parameters, table

DEVICES = 40
COUNT = 3 * DEVICES
EVERY_PARAMETER = {"price": PRICE_DEFAULTS_P, "scheduled": parameters(table((0.25, 0.75)))}


def bound_to_load(
    seed: int, params_P: NDArray[np.float64], follows_prior: bool = False
) -> BoundDecision:
    """Returns a decision on a large fleet under random load, of a network that adds nothing new."""
    weights = zero_weights(features.FEATURE_COUNT, 4)
    if follows_prior:
        weights.w3_P[4 + features.SHIFT_COLUMN] = 1.0
    rng = np.random.default_rng(seed)
    own_LC, others_LC, seen_LC = np.zeros((3, 3, COUNT))
    own_LC[:] = fleets.random_load(rng, COUNT, 10.0)
    arrays = fleets.fleet(DEVICES).arrays
    arrays.availability_C[rng.random(COUNT) < 0.1] = 0.0
    rule = Rule(ROW[DQN], np.array(params_P), weights)
    return BoundDecision(rule, arrays, own_LC, others_LC, seen_LC)


def features_of_all(bound: BoundDecision) -> NDArray[np.float32]:
    """Returns every candidate's features of the decision just taken."""
    b, out_CF = bound.board, np.zeros((COUNT, features.FEATURE_COUNT), np.float32)
    scratch = features.feature_scratch(COUNT)
    features.compute_features(
        b.fleet, b.seen, b.own, b.allowed_C, QUERY, b.params_P, scratch, True, out_CF
    )
    return out_CF


QUERY = fleets.QUERY._replace(rate_short_rps=3000.0, rate_long_rps=2800.0)


@pytest.mark.parametrize("params", EVERY_PARAMETER)
@pytest.mark.parametrize("follows_prior", [False, True])
@given(seed=st.integers(0, 2**31))
def test_price_like_networks_choose_what_they_would_without_it(
    params: str, follows_prior: bool, seed: int
) -> None:
    """A network that follows price, or its prior, finds the very candidate these score highest."""
    params_P = EVERY_PARAMETER[params]
    bound = bound_to_load(seed, params_P, follows_prior)
    action = bound.decide(QUERY, 0.0, -1, 0.0, 0.0, 0.0, 0.0)
    b = bound.board
    kernel = price.score
    if follows_prior and params == "scheduled":
        kernel = scheduled_price.score
    score_C = fleets.compute_scores(kernel, b.fleet, b.seen, b.allowed_C, QUERY, params_P)
    best = np.where(b.allowed_C, score_C, -np.inf).max()
    assert score_C[action] == pytest.approx(best, abs=1e-6)


@given(seed=st.integers(0, 2**31))
def test_listed_candidates_have_the_features_of_the_whole_fleet(seed: int) -> None:
    """Rows of the list are those that all candidates would have; the others are 0."""
    bound = bound_to_load(seed, EVERY_PARAMETER["scheduled"])
    for _ in range(2):
        bound.decide(QUERY, 0.0, -1, 0.0, 0.0, 0.0, 0.0)
        listed_C = bound.board.scratch.listed.weight_C > 0.0
        all_CF = features_of_all(bound)
        np.testing.assert_array_equal(bound.board.features_CF[listed_C], all_CF[listed_C])
        assert not bound.board.features_CF[~listed_C].any()
        bound.board.own.in_flight_C[:] += 1.0


def test_candidates_that_are_not_listed_are_never_taken_for_broken() -> None:
    """Their scores are finite and below all others; forbidden ones stay at minus infinity."""
    bound = bound_to_load(5, PRICE_DEFAULTS_P)
    assert bound.decide(QUERY, 0.0, -1, 0.0, 0.0, 0.0, 0.0) >= 0
    b = bound.board
    listed_C = b.scratch.listed.weight_C > 0.0
    assert (b.decided.score_C[listed_C] > NOT_LISTED).all()
    assert (b.decided.score_C[b.allowed_C & ~listed_C] == NOT_LISTED).all()
    assert (b.decided.score_C[~b.allowed_C] == -np.inf).all()


@given(
    open_share=st.floats(0.0, 1.0),
    device_count=st.integers(1, 60),
    seed=st.integers(0, 2**31),
)
def test_list_holds_the_best_and_stands_for_all(
    open_share: float, device_count: int, seed: int
) -> None:
    """Weights add up to the allowed ones of each tier, and no better candidate is left out."""
    arrays = fleets.fleet(device_count).arrays
    count = len(arrays.tier_C)
    rng = np.random.default_rng(seed)
    allowed_C = rng.random(count) < open_share
    prior_C, price_C = rng.integers(0, 9, (2, count)).astype(float)
    s = Shortlist(*np.zeros((3, count)))
    short = shortlist.choose(arrays, allowed_C, prior_C, price_C, s)
    assert short == (count > LEAST_CANDIDATES)
    if not short:
        return
    assert not s.weight_C[~allowed_C].any()
    for tier in range(3):
        open_C = allowed_C & (arrays.tier_C == tier)
        listed_C = open_C & (s.weight_C > 0.0)
        assert s.weight_C[open_C].sum() == pytest.approx(open_C.sum())
        assert listed_C.sum() <= 2 * BEST + SAMPLES
        for score_C in (prior_C, price_C):
            best = np.sort(score_C[open_C])[::-1][:BEST]
            assert np.sort(score_C[listed_C])[::-1][:BEST].tolist() == best.tolist()
