"""The policy table: names, and what all its policies have in common."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.ledger import zero_load
from router.policies import table
from router.types import UnknownPolicyError
from tests.unit.router import fleets
from tests.unit.router.policies.observations import (
    LARGE,
    MARGIN,
    SMALL,
    decide,
    observation,
    tier_chosen,
)

NAMES = tuple(
    name for name in table.known_policies(fleets.catalog().tiers) if name not in table.LEARNED
)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from((*NAMES, "price+power-of-two", "fluid+round-robin")),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 5.0, 80.0, 1e6]),
    slack_s=st.floats(-1.0, 100.0),
    floor=st.sampled_from([0.0, 0.9]),
    rate_rps=st.floats(0.0, 1e6),
)
def test_every_policy_chooses_an_allowed_candidate_and_explains(
    name: str, seed: int, scale: float, slack_s: float, floor: float, rate_rps: float
) -> None:
    """In any state each policy names an allowed row, with finite scores and predictions."""
    load = fleets.random_load(np.random.default_rng(seed), 6, scale)
    seen = observation(load, rate_rps=rate_rps, slack_s=slack_s, floor=floor)
    decided = decide(table.make_policy(name, fleets.catalog()), seen)
    found = decided.found
    assert found.allowed_C[decided.action]
    np.testing.assert_array_equal(np.isfinite(found.score_C), found.allowed_C)
    assert np.isfinite(found.predicted_s_C).all()
    assert found.predicted_s_C[decided.action] == decided.predicted_s
    assert all(0.0 <= share <= 1.0 for share in found.on_time_probability_C)
    assert 0.0 < decided.probability <= 1.0


@pytest.mark.parametrize(
    ("name", "params"),
    [("greedy", MARGIN), ("slackfit", MARGIN), ("price", {}), ("fluid", {}), ("threshold", {})],
)
def test_idle_fleet_serves_large(name: str, params: dict[str, float]) -> None:
    """With nothing to do and little traffic every load-aware policy gives the best quality."""
    assert tier_chosen(name, observation(), params) == LARGE


@pytest.mark.parametrize("name", ["fluid", "threshold"])
def test_rate_beyond_medium_serves_small(name: str) -> None:
    """At a rate that medium cannot carry the policies that plan by the rate step down."""
    assert tier_chosen(name, observation(rate_rps=2200.0)) == SMALL


@pytest.mark.parametrize("name", ["price", "debt-queue"])
def test_backlog_steps_down(name: str) -> None:
    """When every device has most of a deadline's work, the large tier is not chosen."""
    load = zero_load(6)
    load.in_flight_C[[2, 5]] = 14.0
    load.waiting_prompt_tokens_C[[2, 5]] = 3000.0
    load.remaining_output_tokens_C[[2, 5]] = 14.0 * 8.0
    assert tier_chosen(name, observation(load, rate_rps=200.0)) < LARGE


def test_unknown_policy_lists_the_known() -> None:
    """The error names every policy that exists."""
    with pytest.raises(UnknownPolicyError, match=r"static-large.*price.*dqn"):
        table.make_policy("nope", fleets.catalog())


@pytest.mark.parametrize("name", table.LEARNED)
def test_learned_policy_without_snapshot_is_refused(name: str) -> None:
    """A learned policy says what it lacks."""
    with pytest.raises(table.MissingSnapshotError, match=f"{name}.*snapshot"):
        table.make_policy(name, fleets.catalog())
