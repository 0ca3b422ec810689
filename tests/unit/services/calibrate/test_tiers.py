"""Which live tiers a measurement goes to."""

from __future__ import annotations

from services.calibrate.tiers import tiers_of_entries
from services.local.settings_file import EndpointEntry


def test_tiers_come_in_order_from_the_first_endpoint_that_serves_them() -> None:
    """One live tier per name, lowest quality first."""
    endpoints = [
        EndpointEntry("b", "127.0.0.1:2", "", ("large", "small"), {"large": "opt"}, ""),
        EndpointEntry("c", "127.0.0.1:3", "", ("small",), {}, ""),
    ]
    tiers = tiers_of_entries(endpoints, ("small", "medium", "large"))
    assert [(each.tier, each.model, each.endpoint) for each in tiers] == [
        ("small", "small", "b"),
        ("large", "opt", "b"),
    ]
