"""A small run of the load generator."""

from __future__ import annotations

from typing import Any

from services.loadgen.spec import LoadSpec, parse_spec


def spec_of(address: Any, **fields: Any) -> LoadSpec:
    """A run of about 40 requests in 0.2 s."""
    base = {
        "router_addresses": [address],
        "phases": [{"name": "burst", "duration_s": 0.2, "rate_rps": 200}],
        "deadline_s": 0.5,
        "task_mix": {"sort": 1.0},
        "prompts": {"sort": [{"text": "ab", "answer": "AB"}, {"text": "cd", "answer": "XX"}]},
        "seed": 5,
    }
    return parse_spec({**base, **fields})
