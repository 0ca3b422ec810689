"""The learned policy on the request path."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from router.catalog import Catalog, QualityTable
from router.dqn.snapshot import (
    REASON_BASE,
    REASON_SCHEMA,
    REASON_SHAPE,
    Snapshot,
    SnapshotError,
    load_snapshot,
    save_snapshot,
    zero_weights,
)
from router.features import FEATURE_COUNT, FEATURES, SCHEMA
from router.fleet import EndpointSpec, Fleet, build_fleet
from router.ledger import zero_load
from router.policies.dqn import DqnPolicy
from router.policies.table import make_policy
from router.profile import LatencyProfile, TierProfile
from router.types import Task
from tests.unit.router.fleets import random_load
from tests.unit.router.policies.observations import decide, observation

TIERS = ("small", "large")
CATALOG = Catalog.build(
    TIERS,
    (Task("t", 0.4),),
    QualityTable("q", "assumed", {"t": {"small": 0.5, "large": 1.0}}, {}),
)
PROFILE = LatencyProfile(
    "p",
    "assumed",
    {"small": TierProfile(0.001, 1e-5, 1e-6), "large": TierProfile(0.01, 1e-4, 1e-5)},
)


def _snapshot(**linear: float) -> Snapshot:
    """A network that is linear in the named features."""
    names = tuple(feature.name for feature in FEATURES)
    weights = zero_weights(FEATURE_COUNT, 4)
    for name, value in linear.items():
        weights.w3_P[4 + names.index(name)] = value
    return load_snapshot(save_snapshot(Snapshot(weights, SCHEMA, names)))


def _fleet() -> Fleet:
    endpoints = [
        EndpointSpec(f"e{i}", "127.0.0.1:1", f"d{i}", {t: t for t in TIERS}) for i in range(2)
    ]
    return build_fleet(CATALOG, endpoints, {"": PROFILE})


def test_takes_the_highest_value_and_explains_it() -> None:
    """The choice follows the network, and the decision carries what it rests on."""
    fleet = _fleet()
    seen = observation(fleet=fleet, rate_rps=10.0)
    decided = decide(DqnPolicy(_snapshot(quality=1.0)), seen)
    found = decided.found
    assert fleet.candidate(decided.action)[0] == "large"
    assert found.features_CF is not None
    assert found.features_CF.shape == (4, FEATURE_COUNT)
    price = decide(make_policy("price", CATALOG), seen).found
    np.testing.assert_allclose(found.score_C - price.score_C, found.features_CF[:, 0])
    assert found.predicted_s_C.min() > 0.0
    assert found.on_time_probability_C.min() > 0.9
    assert decided.probability == 1.0
    assert not decided.explored


def test_untrained_network_decides_as_price_does() -> None:
    """With every weight zero, scores and choice are the price policy's, to the last bit."""
    fleet = _fleet()
    policy, price = DqnPolicy(_snapshot()), make_policy("price", CATALOG)
    for seed in range(20):
        load = random_load(np.random.default_rng(seed), fleet.candidate_count, 30.0)
        seen = observation(load, fleet=fleet, rate_rps=10.0)
        own, other = decide(policy, seen), decide(price, seen)
        assert own.action == other.action
        np.testing.assert_array_equal(own.found.score_C, other.found.score_C)


def test_snapshot_states_the_price_it_corrects() -> None:
    """The base's parameters come from the snapshot, and a wrong one is refused by name."""
    names = tuple(feature.name for feature in FEATURES)
    snapshot = Snapshot(zero_weights(FEATURE_COUNT, 4), SCHEMA, names, base={"level": -9.0})
    policy = DqnPolicy(load_snapshot(save_snapshot(snapshot)))
    cheap = make_policy("price", CATALOG, {"level": -9.0})
    own, other = (decide(each, observation(fleet=_fleet())).found for each in (policy, cheap))
    np.testing.assert_array_equal(own.score_C, other.score_C)
    for base in ({"levle": 1.0}, {"level": 1e9}):
        with pytest.raises(SnapshotError, match=next(iter(base))) as caught:
            DqnPolicy(replace(snapshot, base=base))
        assert caught.value.reason == REASON_BASE


def test_load_moves_the_choice_to_the_idle_device() -> None:
    """A network that dislikes backlog leaves the loaded device alone."""
    fleet = _fleet()
    load = zero_load(4)
    load.in_flight_C[:2] = 20.0
    load.remaining_output_tokens_C[:2] = 160.0
    policy = DqnPolicy(_snapshot(quality=1.0, device_backlog=-1.0))
    tier, endpoint = fleet.candidate(decide(policy, observation(load, fleet=fleet)).action)
    assert (tier, endpoint.name) == ("large", "e1")


def test_pinned_tier_is_respected() -> None:
    """A candidate that is not allowed is never chosen, whatever its value."""
    fleet = _fleet()
    decided = decide(DqnPolicy(_snapshot(quality=1.0)), observation(fleet=fleet, pin=0))
    assert fleet.candidate(decided.action)[0] == "small"
    assert np.isneginf(decided.found.score_C[1])


def test_registry_makes_it() -> None:
    """`make_policy` returns the learned policy under its name and version."""
    snapshot = _snapshot(quality=1.0)
    policy = make_policy("dqn", CATALOG, snapshot=snapshot)
    assert (policy.name, policy.version) == ("dqn", snapshot.version)


def test_other_schema_or_width_is_refused() -> None:
    """A snapshot for other features never becomes a policy."""
    good = _snapshot()
    with pytest.raises(SnapshotError) as caught:
        DqnPolicy(replace(good, feature_schema="other"))
    assert caught.value.reason == REASON_SCHEMA
    with pytest.raises(SnapshotError) as caught:
        DqnPolicy(replace(good, weights=zero_weights(3, 4)))
    assert caught.value.reason == REASON_SHAPE
