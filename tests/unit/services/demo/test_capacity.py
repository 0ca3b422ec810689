"""The search for the highest rate static-large holds."""

from __future__ import annotations

import pytest

from router.profile import TierProfile
from services.demo.capacity import CapacityProbe, bounds, find_capacity, profile_rate_rps


@pytest.mark.parametrize("truth_rps", [3.0, 17.0, 40.0])
async def test_the_search_ends_close_below_the_true_capacity(truth_rps: float) -> None:
    """The rate found held, and is within the step that ends the search."""

    async def probe(rate_rps: float) -> float:
        return 1.0 if rate_rps <= truth_rps else 0.8

    probes = await find_capacity(probe, 20.0, 16)
    held, failed = bounds(probes)
    assert held <= truth_rps < failed
    assert held >= truth_rps / 1.1


def test_luck_above_a_failure_does_not_count() -> None:
    """A rate that held above one that failed is left out."""
    probes = [CapacityProbe(10, 1.0), CapacityProbe(12, 0.9), CapacityProbe(14, 1.0)]
    assert bounds(probes) == (10, 12)
    assert bounds([CapacityProbe(10, 0.5)]) == (0.0, 10)


def test_a_full_batch_carries_what_the_profile_says() -> None:
    """Requests per second from the cost per request."""
    profile = TierProfile(0.004, 0.001, 0.0001, max_batch=4)
    assert profile_rate_rps(profile, 20, 8) == pytest.approx(1 / (8 * 0.002 + 0.002))
