"""The decision as one function: it chooses what the whole call of a live router chooses."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from router import decision, features
from router.bound import BoundDecision, Rule
from router.dqn.snapshot import Snapshot, Weights, zero_weights
from router.ledger import LoadArrays
from router.policies import scheduled_price
from router.policies.dqn import PRICE_DEFAULTS_P
from router.policies.scores import Query, Scratch, scratch
from router.policies.table import BY_HAND, DQN, ROW, make_policy
from tests.unit.router import fleets

COUNT = 6


def random_weights() -> Weights:
    """Returns a network that disagrees with its price score now and then."""
    rng = np.random.default_rng(3)
    weights = zero_weights(features.FEATURE_COUNT, 8)
    for layer in weights[:-1]:
        layer[...] = rng.normal(0, 0.2, layer.shape)
    return weights


class Seen(NamedTuple):
    """A request, and loads of a fleet."""

    own: LoadArrays
    others: LoadArrays
    query: Query


def seen(rng: np.random.Generator) -> Seen:
    """Returns a fleet under random load, half of it of other routers."""
    half = LoadArrays(*(0.5 * part for part in fleets.random_load(rng, COUNT, 20.0)))
    task, slack_s = int(rng.integers(2)), float(rng.uniform(0.05, 0.6))
    rate_rps, draw = float(rng.uniform(1, 2000)), float(rng.random())
    query = Query(task, slack_s, 100.0, 8.0, 8.0, 0.0, 110.0, rate_rps, 300.0, 0.2, draw, 0.5)
    query = query._replace(pressure=float(rng.choice([0.0, 1.0, 3.5])))
    query = query._replace(log_price=float(rng.choice([-0.7, 0.0, 0.7])))
    return Seen(half, half, query)


def decided(rule: Rule, state: Seen) -> int:
    """Returns what `decide` chooses on arrays."""
    return scored(rule, state)[0]


def scored(rule: Rule, state: Seen) -> tuple[int, NDArray[np.float64], Scratch]:
    """Returns what `decide` chooses, its scores, and the price that a network corrects."""
    allowed_C, s = np.ones(COUNT, np.bool_), scratch(COUNT)
    working = features.feature_scratch(COUNT)
    features_CF = np.zeros((COUNT, features.FEATURE_COUNT), np.float32)
    action = decision.decide(
        rule.row,
        fleets.fleet(2).arrays,
        LoadArrays(*(own + others for own, others in zip(state.own, state.others, strict=True))),
        state.own,
        allowed_C,
        state.query,
        rule.params_P.copy(),
        rule.weights,
        working,
        features_CF,
        s,
        False,
    )
    return action, s.score_C, working.seen


@pytest.mark.parametrize("name", [*BY_HAND, DQN])
def test_one_function_chooses_what_the_bound_decision_does(name: str) -> None:
    """In random states both take the same candidate, draws included."""
    names = tuple(feature.name for feature in features.FEATURES)
    snapshot = Snapshot(random_weights(), features.SCHEMA, names) if name == DQN else None
    policy = make_policy(name, fleets.catalog(), snapshot=snapshot)
    rng = np.random.default_rng(9)
    own_LC, others_LC, seen_LC = np.zeros((3, 3, COUNT))
    bound = BoundDecision(Rule.of(policy), fleets.fleet(2).arrays, own_LC, others_LC, seen_LC)
    for _ in range(40):
        state = seen(rng)
        own_LC[:], others_LC[:] = state.own, state.others
        expected = decided(bound.rule, state)
        assert bound.decide(state.query, 0.0, -1, 0.0, 0.0, 0.0, 0.0) == expected


@pytest.mark.parametrize(("interval_s", "event_tokens"), [(1e-12, 8.0), (1e3, 1.0)])
@pytest.mark.parametrize("name", [*BY_HAND, DQN])
def test_a_schedule_of_tokens_lies_between_the_other_kinds(
    name: str, interval_s: float, event_tokens: float
) -> None:
    """Without time for further tokens all are due at the deadline; with all the time, the first."""
    names = tuple(feature.name for feature in features.FEATURES)
    snapshot = Snapshot(random_weights(), features.SCHEMA, names) if name == DQN else None
    rule = Rule.of(make_policy(name, fleets.catalog(), snapshot=snapshot))
    rng = np.random.default_rng(11)
    for _ in range(30):
        state = seen(rng)
        paced = state.query._replace(token_interval_s=interval_s)
        other = state.query._replace(event_tokens=event_tokens)
        expected = decided(rule, state._replace(query=other))
        assert decided(rule, state._replace(query=paced)) == expected


@pytest.mark.parametrize("name", ["price", DQN])
def test_a_pressed_price_goes_down_and_the_floor_is_the_smallest_tier(name: str) -> None:
    """Over random states the mean tier falls with the pressure, also from below 0.

    Held small, it is the smallest.
    """
    names = tuple(feature.name for feature in features.FEATURES)
    snapshot = Snapshot(random_weights(), features.SCHEMA, names) if name == DQN else None
    rule = Rule.of(make_policy(name, fleets.catalog(), snapshot=snapshot))
    tier_C = fleets.fleet(2).arrays.tier_C
    rng = np.random.default_rng(3)
    tiers: dict[float, list[int]] = {-1.5: [], 0.0: [], 1.5: [], 3.0: []}
    for _ in range(100):
        state = seen(rng)
        for total, found in tiers.items():
            # What a priority class adds counts as pressure does, and may be below 0.
            pressure = max(0.0, total) / 2.0
            query = state.query._replace(pressure=pressure, log_price=total - pressure)
            found.append(int(tier_C[decided(rule, state._replace(query=query))]))
        small = state._replace(query=state.query._replace(is_small=1.0))
        assert tier_C[decided(rule, small)] == tier_C.min()
    means = [np.mean(found) for found in tiers.values()]
    assert means == sorted(means, reverse=True)
    assert len(set(means)) == len(means)


def test_nothing_is_earned_by_taking_device_time() -> None:
    """A high class is charged less, never less than nothing, however slow devices are."""
    names = tuple(feature.name for feature in features.FEATURES)
    snapshot = Snapshot(zero_weights(features.FEATURE_COUNT, 8), features.SCHEMA, names)
    rule = Rule.of(make_policy(DQN, fleets.catalog(), snapshot=snapshot))
    quality_KC = fleets.fleet(2).arrays.quality_KC
    rng = np.random.default_rng(5)
    for _ in range(50):
        state = seen(rng)
        query = state.query._replace(slowdown=2.0, pressure=0.0, log_price=-1.4)
        _, score_C, price = scored(rule, state._replace(query=query))
        free_C = quality_KC[query.task] * price.probability_C
        assert np.all(score_C <= np.maximum(free_C, price.score_C) + 1e-9)


def _scheduled(level: float, backlog: float) -> Rule:
    """Returns a scheduled price that is the same at every load, without bands."""
    row = [level, backlog, 0.8, 0.4, 1.6, 4.0, 0.0, 0.3, 0.6]
    columns = list(scheduled_price.VALUES)
    table = {"columns": columns, "first_load": 0.0, "step": 1.0, "rows": [row]}
    params_P = [*PRICE_DEFAULTS_P, *scheduled_price.parameters_of(table), 0.0]
    return Rule(ROW["scheduled-price"], np.array(params_P))


@pytest.mark.parametrize("name", ["price", "scheduled-price", DQN])
def test_soft_deadlines_are_charged_for_all_of_their_device_time(name: str) -> None:
    """Twice the price is twice the charge, also where much is earned by being late."""
    names = tuple(feature.name for feature in features.FEATURES)
    zeroed = Snapshot(zero_weights(features.FEATURE_COUNT, 8), features.SCHEMA, names)
    nothing = {"level": -15.0, "backlog": 0.0, "load": 0.0, "load_square": 0.0}
    free = Rule.of(make_policy("price", fleets.catalog(), nothing))
    rule = Rule.of(make_policy("price", fleets.catalog()))
    if name == DQN:
        rule = Rule.of(make_policy(DQN, fleets.catalog(), snapshot=zeroed))
    elif name == "scheduled-price":
        free, rule = _scheduled(-15.0, 0.0), _scheduled(-3.0, 2.0)
    rng = np.random.default_rng(6)
    for _ in range(50):
        state = seen(rng)
        slowdown = 1.6 if name == "scheduled-price" else 1.0
        query = state.query._replace(soft_decay_s=0.2, pressure=0.0, slowdown=slowdown)
        worth_C, once_C, twice_C = (
            scored(policy, state._replace(query=query._replace(log_price=log_price)))[1]
            for policy, log_price in ((free, 0.0), (rule, 0.0), (rule, math.log(2.0)))
        )
        np.testing.assert_allclose(twice_C - once_C, once_C - worth_C, rtol=1e-3, atol=1e-4)


def test_a_policy_without_a_price_feels_no_pressure() -> None:
    """It decides as it did, held small or not."""
    rule = Rule.of(make_policy("greedy", fleets.catalog()))
    rng = np.random.default_rng(4)
    for _ in range(50):
        state = seen(rng)
        free = state._replace(query=state.query._replace(pressure=0.0))
        held = state._replace(query=state.query._replace(pressure=4.0, is_small=1.0))
        assert decided(rule, free) == decided(rule, held)
