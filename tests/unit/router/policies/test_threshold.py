"""Threshold: tiers by the rate alone."""

from __future__ import annotations

from tests.unit.router.policies.observations import (
    LARGE,
    MEDIUM,
    observation,
    tier_chosen,
)


def test_threshold_plans_for_the_largest_tier_by_itself() -> None:
    """A small share of the largest tier gives it up early and leaves the tier below alone."""
    seen = observation(rate_rps=60.0)
    assert tier_chosen("threshold", seen, {"top_utilisation": 1.5, "utilisation": 0.5}) == LARGE
    assert tier_chosen("threshold", seen, {"top_utilisation": 0.05, "utilisation": 0.5}) == MEDIUM
