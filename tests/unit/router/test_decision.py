"""The decision as one function: on arrays it chooses what live policies choose on lists."""

from __future__ import annotations

import numpy as np
import pytest

from router import decision, features
from router.dqn.network import NetworkArrays
from router.dqn.snapshot import Snapshot, Weights, zero_weights
from router.ledger import LoadArrays
from router.policies.base import ScorePolicy, query_of
from router.policies.dqn import DqnPolicy
from router.policies.scores import scratch
from router.policies.table import BY_HAND, DQN, ROW, make_policy
from router.policy import Observation, Policy, observe
from router.types import Request, Signals
from tests.unit.router import fleets

COUNT = 6


def random_weights() -> Weights:
    """Returns a network that disagrees with its price score now and then."""
    rng = np.random.default_rng(3)
    weights = zero_weights(features.FEATURE_COUNT, 8)
    for layer in weights[:-1]:
        layer[...] = rng.normal(0, 0.2, layer.shape)
    return weights


def seen(rng: np.random.Generator) -> Observation:
    """Returns a fleet under random load, partly of other routers."""
    load = fleets.random_load(rng, COUNT, 20.0)
    request = Request(int(rng.integers(2)), float(rng.uniform(0.05, 0.6)), 100.0, 8.0)
    signals = Signals(float(rng.uniform(1, 2000)), 300.0, 0.2, 110.0, own_share=0.5)
    own = LoadArrays(*(0.5 * part for part in load))
    return observe(fleets.fleet(2), load, request, signals, rng, own=own)


def decided(policy: Policy, row: int, observation: Observation, draw: float) -> int:
    """Returns what `decide` chooses on arrays."""
    params_P, weights = np.zeros(1), zero_weights(features.FEATURE_COUNT, 1)
    if isinstance(policy, DqnPolicy):
        params_P, weights = policy.base_P, policy.snapshot.weights
    elif isinstance(policy, ScorePolicy):
        params_P = policy.params_P
    assert observation.own is not None
    allowed_C, s = np.array(observation.allowed_C), scratch(COUNT, np.zeros)
    working = features.feature_scratch(COUNT, np.zeros)
    features_CF = np.zeros((COUNT, features.FEATURE_COUNT), np.float32)
    return decision.decide(
        row,
        observation.fleet.arrays,
        observation.load,
        observation.own,
        allowed_C,
        query_of(observation, draw),
        params_P,
        weights,
        working,
        features_CF,
        s,
        NetworkArrays(features_CF, allowed_C, working.seen.score_C, s.score_C),
    )


@pytest.mark.parametrize("name", [*BY_HAND, DQN])
def test_one_function_chooses_what_the_live_policy_does(name: str) -> None:
    """In random states both take the same candidate, draws included."""
    names = tuple(feature.name for feature in features.FEATURES)
    snapshot = Snapshot(random_weights(), features.SCHEMA, names) if name == DQN else None
    policy = make_policy(name, fleets.catalog(), snapshot=snapshot)
    rng = np.random.default_rng(9)
    for seed in range(40):
        observation = seen(rng)
        draw = float(np.random.default_rng(seed).random())
        expected = decided(policy, ROW[name], observation, draw)
        assert policy.decide(observation, np.random.default_rng(seed)).action == expected
