"""What the monitor refuses before it starts."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.settings import SettingsError
from services.load_monitor.app import build_app
from services.load_monitor.settings import Settings

FAR = "10.0.0.5:8000"


def settings(**own: Any) -> Settings:
    """Settings of a monitor whose endpoint and Redis are on other machines."""
    endpoint = {"name": "e", "address": FAR, "protocol": "openai", "tiers": ["small"]}
    mesh = {
        "tiers": ["small"],
        "profile": "p.toml",
        "quality": "q.toml",
        "redis_url": "redis://10.0.0.7/0",
        "load_monitor_address": "10.0.0.8:7411",
        "tasks": [{"name": "t", "default_deadline_s": 1.0}],
        "endpoints": [endpoint],
    }
    return Settings.model_validate({"mesh": mesh, "load_monitor": own})


async def test_what_would_cross_a_network_in_plain_text_is_refused() -> None:
    """It calls no monitor, so that address is none of its business."""
    with pytest.raises(SettingsError) as caught:
        build_app(settings())
    assert [line.partition(": ")[0] for line in caught.value.problems] == [
        "mesh.endpoints.0.address",
        "mesh.redis_url",
    ]
    assert "load_monitor.insecure_open_to_network = true" in caught.value.problems[0]


async def test_with_leave_it_starts_and_endpoints_may_join() -> None:
    """For both it is the same setting."""
    app = build_app(settings(insecure_open_to_network=True))
    assert app._refusal("address", FAR) is None
