"""``tiercel evaluate --live`` with a real mesh: both sides answer the same requests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from services.live.compare import evaluate_live
from tests.unit.services.live.subjects import PLAN

pytestmark = [pytest.mark.triton, pytest.mark.timeout(240)]


async def test_both_sides_answer_the_same_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A light load on the smallest tier: everything is answered, live as simulated."""
    monkeypatch.setenv("TIERCEL_STATE", str(tmp_path))
    plan = dataclasses.replace(
        PLAN, policies=("static-small",), loads=(1.0,), devices=1, seconds=2.0, time_scale=5.0
    )
    said: list[str] = []
    report = await evaluate_live(plan, None, said.append)
    (point,) = report["points"]
    assert point["policy_versions"] == ["static-small@least-work"]
    assert point["live"]["requests"] == point["simulated"]["requests"] > 20
    assert point["live"]["mix"] == {"small": 1.0}
    assert point["cores"]["router-inference-0"] > 0.0
    assert 0.0 < point["machine_busy"] <= 1.0
    assert said[0] == "time x5: starting the mesh"
