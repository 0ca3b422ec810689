"""The live view on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from services.local.live import LiveFacts
from services.local.live_view import render

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
)


def test_the_view_shows_rate_mix_queue_health_and_policy() -> None:
    """What operators look for is on the screen."""
    out = Console(width=120, record=True, file=io.StringIO())
    out.print(render(FACTS, ("small", "large")))
    text = out.export_text()
    for shown in ("20.0 requests/s", "on time 1.000", "quality 0.900", "large 0.50", "ready"):
        assert shown in text
    assert "r: price 1" in text
