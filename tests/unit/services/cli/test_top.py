"""What ``tiercel top`` prints for machines."""

from __future__ import annotations

import json

from services.cli.top import facts_json
from services.local.live import LiveFacts
from services.local.task_targets import TaskTarget


def test_pairs_of_tier_and_endpoint_become_rows() -> None:
    """JSON has no keys of two parts."""
    tasks = [TaskTarget("copa", {0.99: 2}, 0.99, 9, 1, None)]
    facts = LiveFacts(0.0, None, None, None, 0.0, {}, {}, {("large", "e"): 2}, {}, {}, tasks)
    shown = facts_json(facts)
    assert shown["queue_depth"] == [{"tier": "large", "endpoint": "e", "count": 2}]
    assert shown["in_flight"] == []
    assert [(each["target"], each["attained"]) for each in shown["tasks"]] == [(0.99, 0.9)]
    json.dumps(shown)
