"""What ``tiercel top`` prints for machines."""

from __future__ import annotations

from services.cli.top import facts_json
from services.local.live import LiveFacts


def test_pairs_of_tier_and_endpoint_become_rows() -> None:
    """JSON has no keys of two parts."""
    facts = LiveFacts(0.0, None, None, None, 0.0, {}, {}, {("large", "e"): 2}, {}, {})
    shown = facts_json(facts)
    assert shown["queue_depth"] == [{"tier": "large", "endpoint": "e", "count": 2}]
    assert shown["in_flight"] == []
