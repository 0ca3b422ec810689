"""The live view on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from services.local.live import LiveFacts
from services.local.live_view import render
from services.local.task_targets import TaskTarget
from tiercel.load_monitor.v1 import system_state_pb2 as pb

FACTS = LiveFacts(
    rate_rps=20.0,
    on_time_share=1.0,
    quality=0.9,
    performance=0.9,
    refused_rps=0.0,
    mix={"small": 0.5, "large": 0.5},
    in_flight={("large", "e"): 3},
    queue_depth={("large", "e"): 2},
    policies={"r": "price 1"},
    health={"e": "ready"},
    tasks=[
        TaskTarget("copa", {0.99: 2}, 0.99, 198, 2, None),
        TaskTarget("piqa", {0.9: 1, 0.999: 1}, 0.9, 9, 1, pb.TargetOverride(target=0.999)),
    ],
)


def test_the_view_shows_rate_mix_queue_health_and_policy() -> None:
    """What operators look for is on the screen."""
    out = Console(width=120, record=True, file=io.StringIO())
    out.print(render(FACTS, ("small", "large")))
    text = out.export_text()
    for shown in ("20.0 requests/s", "on time 1.000", "quality 0.900", "large 0.50", "ready"):
        assert shown in text
    assert "r: price 1" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["copa", "0.99", "0.990", "200"] in rows
    assert ["piqa", "*", "0.9", "at", "1,", "0.999", "at", "1", "0.900", "10"] in rows
    assert "tiercel target show" in text
