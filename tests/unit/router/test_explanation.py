"""What a decision found is found again, bit by bit, when everything has moved on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from router import features
from router.bound import Bind, bind_plain
from router.desk import Asked, Desk
from router.dqn.snapshot import Snapshot, zero_weights
from router.explanation import Explainer, Inputs
from router.policies.scores import Query
from router.policies.table import BY_HAND, DQN, make_policy
from router.policy import Policy
from router.seat import Seat
from tests.unit.router import fleets
from tests.unit.router.machine import compiled_bind

DEVICES, COUNT = 4, 12


def policy_of(name: str) -> Policy:
    """Returns a policy by name; dqn with random layers."""
    rng = np.random.default_rng(3)
    weights = zero_weights(features.FEATURE_COUNT, 8)
    for layer in weights[:-1]:
        layer[...] = rng.normal(0, 0.2, layer.shape)
    names = tuple(feature.name for feature in features.FEATURES)
    snapshot = Snapshot(weights, features.SCHEMA, names) if name.startswith(DQN) else None
    return make_policy(name, fleets.catalog(), snapshot=snapshot)


class World:
    """A desk whose arrays change in place, as a live router's do."""

    def __init__(self, seed: int, bind: Bind = bind_plain) -> None:
        """Starts idle."""
        self.rng = np.random.default_rng(seed)
        self.profiled, self.fleet = fleets.fleet(DEVICES), fleets.fleet(DEVICES)
        self.own_LC, self.others_LC, self.seen_LC = np.zeros((3, 3, COUNT))
        self.desk = Desk(
            self.fleet.arrays, self.own_LC, self.others_LC, self.seen_LC, self.rng, bind
        )
        self.move()

    def move(self) -> None:
        """Changes whatever can change."""
        rng = self.rng
        self.slowness_D = rng.uniform(0.5, 3.0, DEVICES)
        self.availability_C = rng.choice([0.0, 0.3, 1.0], COUNT, p=[0.1, 0.2, 0.7])
        self.availability_C[int(rng.integers(COUNT))] = 1.0
        self.fleet.copy_times(self.profiled.with_slowness(self.slowness_D))
        self.fleet.arrays.availability_C[:] = self.availability_C
        self.heard_LC = np.array(fleets.random_load(rng, COUNT, 20.0))
        self.others_LC[:] = self.heard_LC
        self.own_LC[:] = fleets.random_load(rng, COUNT, 9.0)
        self.home_C = rng.random(COUNT) < rng.choice([0.4, 1.0])
        self.fleet.arrays.home_C[:] = self.home_C

    def decide(self, policy: Policy) -> Inputs:
        """Takes a decision; returns what it rested on."""
        rng = self.rng
        query = Query(
            int(rng.integers(2)), float(rng.uniform(0.01, 0.6)), float(rng.integers(1, 400)),
            8.0, 8.0, float(rng.choice([0.0, 0.2])), 110.0, float(rng.uniform(1, 2000)), 300.0,
            float(rng.uniform(0, 1)), 0.0, 0.5, 90.0, 4.0, float(rng.choice([1.0, 1.4])),
        )  # fmt: skip
        seat = Seat(int(rng.integers(-1, COUNT)), 0.5 * query.prompt_tokens, 0.05)
        self.desk.asked = Asked(query, 0.0, -1, float(rng.random()), 1e9, 0.7, seat)
        self.desk.ask(policy)
        return Inputs(
            self.profiled, self.slowness_D, self.availability_C, self.home_C,
            self.own_LC.copy(), self.heard_LC, self.desk.rule, self.desk.asked,
        )  # fmt: skip


def test_what_a_request_might_not_have_had_was_left_to_nobody() -> None:
    """Of a pinned tier only its own candidates away from home were left to other routers."""
    world = World(3)
    found = None
    while found is None or not found.away_C.any():
        world.move()
        inputs = world.decide(policy_of("price"))
        asked = inputs.asked._replace(tier_pin=0, query=inputs.asked.query._replace(slack_s=100.0))
        found = Explainer().explain(inputs._replace(asked=asked))
    away = np.flatnonzero(found.away_C)
    assert (inputs.fleet.arrays.tier_C[away] == 0).all()
    assert not (inputs.home_C[away] | found.allowed_C[away]).any()
    assert (inputs.availability_C[away] > 0.0).all()


@pytest.mark.timeout(300)  # the first run on a machine compiles
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("name", [*BY_HAND, "static-medium", DQN, "price+power-of-two"])
def test_an_explanation_is_what_the_decision_found(name: str, is_compiled: bool) -> None:
    """Scores, predictions, mask, loads and features are the same to the last bit."""
    bind = compiled_bind() if is_compiled else bind_plain
    world, policy = World(7, bind), policy_of(name)
    kept = []
    for _ in range(12):
        inputs = world.decide(policy)
        board = world.desk.bound.board
        kept.append(
            (
                inputs,
                board.allowed_C.copy(),
                np.where(board.allowed_C, board.decided.score_C, -np.inf),
                board.decided.predicted_s_C.copy(),
                board.decided.probability_C.copy(),
                board.seen.in_flight_C.copy(),
                board.features_CF.copy() if name == DQN else None,
            )
        )
        world.move()
    explainer = Explainer(bind)
    for inputs, *computed in reversed(kept):
        found = explainer.explain(inputs)
        again = Explainer(bind).explain(inputs)
        for one, two, three in zip(
            computed,
            (
                found.allowed_C, found.score_C, found.predicted_s_C, found.on_time_probability_C,
                found.in_flight_C, found.features_CF,
            ),
            (
                again.allowed_C, again.score_C, again.predicted_s_C, again.on_time_probability_C,
                again.in_flight_C, again.features_CF,
            ),
            strict=True,
        ):  # fmt: skip
            np.testing.assert_array_equal(one, two)
            np.testing.assert_array_equal(one, three)


def test_features_do_not_depend_on_who_decided() -> None:
    """A record of price's traffic has the features that an untrained network would have read."""
    worlds = [World(5), World(5)]
    names = tuple(feature.name for feature in features.FEATURES)
    untrained = Snapshot(zero_weights(features.FEATURE_COUNT, 4), features.SCHEMA, names)
    dqn = make_policy(DQN, fleets.catalog(), snapshot=untrained)
    of_price, of_dqn = (
        Explainer().features(world.decide(policy))
        for world, policy in zip(worlds, (policy_of("price"), dqn), strict=True)
    )
    np.testing.assert_array_equal(of_price, of_dqn)
    assert of_price.any()


def test_the_slack_that_a_larger_tier_would_have_taken_is_enough_and_no_more_than_enough() -> None:
    """Deciding again with it brings a larger tier, with a fiftieth less it does not."""
    explainer, found = Explainer(), 0
    for seed in range(20):
        world = World(seed)
        inputs = world.decide(policy_of("greedy"))
        tier_C = world.fleet.arrays.tier_C

        def chosen(slack_s: float, inputs: Inputs = inputs, tier_C: NDArray[Any] = tier_C) -> int:
            query = inputs.asked.query._replace(slack_s=slack_s)
            asked = inputs.asked._replace(query=query)
            scores_C = explainer.explain(inputs._replace(asked=asked)).score_C
            return int(tier_C[np.argmax(scores_C)])

        tier = chosen(inputs.asked.query.slack_s)
        larger = explainer.for_larger_tier(inputs, tier)
        if larger.slack_s is None:
            assert chosen(15.0 * inputs.asked.query.slack_s) == tier
            continue
        found += 1
        assert chosen(larger.slack_s) > tier
        assert chosen(max(0.98 * larger.slack_s, inputs.asked.query.slack_s)) == tier
    assert found


def test_load_alone_may_be_why_no_larger_tier_was_chosen() -> None:
    """On an idle fleet the largest tier is in time."""
    world = World(3)
    inputs = world.decide(policy_of("greedy"))
    asked = inputs.asked._replace(query=inputs.asked.query._replace(slack_s=2.0))
    inputs = inputs._replace(
        asked=asked, others_LC=np.full_like(inputs.others_LC, 500.0),
        availability_C=np.ones_like(inputs.availability_C),
    )  # fmt: skip
    assert Explainer().for_larger_tier(inputs, 0).if_idle
