"""Greedy by the prior: tiers by the profile alone."""

from __future__ import annotations

import pytest

from router.ledger import zero_load
from tests.unit.router.policies.observations import (
    LARGE,
    MEDIUM,
    SMALL,
    observation,
    tier_chosen,
)


@pytest.mark.parametrize(("slack_s", "tier"), [(0.4, LARGE), (0.08, MEDIUM), (0.02, SMALL)])
def test_greedy_prior_goes_by_the_profile_and_sees_no_load(slack_s: float, tier: int) -> None:
    """The tier follows from deadline and profile; twenty requests in front of it change nothing."""
    load = zero_load(6)
    load.in_flight_C[:] = 20.0
    load.remaining_output_tokens_C[:] = 160.0
    assert tier_chosen("greedy-prior", observation(slack_s=slack_s)) == tier
    assert tier_chosen("greedy-prior", observation(load, slack_s=slack_s)) == tier
