"""``tiercel evaluate --live`` with a real mesh: both sides answer the same requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.deploy.manifests import ROOT

pytestmark = [pytest.mark.triton, pytest.mark.timeout(240)]

# In a process of its own: a mesh that stops ends every process below the one that started it, and
# so would end the servers that other tests share.
PROGRAM = """
import asyncio, dataclasses, json
from services.live.compare import evaluate_live
from tests.unit.services.live.subjects import PLAN

plan = dataclasses.replace(
    PLAN, policies=("static-small",), loads=(1.0,), devices=1, seconds=2.0, time_scale=5.0
)
said = []
report = asyncio.run(evaluate_live(plan, None, said.append))
print(json.dumps({"points": report["points"], "said": said}))
"""


def test_both_sides_answer_the_same_requests(tmp_path: Path) -> None:
    """A light load on the smallest tier: everything is answered, live as simulated."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=ROOT,
        env={**os.environ, "TIERCEL_STATE": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    (point,) = found["points"]
    assert point["policy_versions"] == ["static-small@least-work"]
    assert point["live"]["requests"] == point["simulated"]["requests"] > 20
    assert point["live"]["mix"] == {"small": 1.0}
    assert point["cores"]["router-inference-0"] > 0.0
    assert 0.0 < point["machine_busy"] <= 1.0
    assert found["said"][0] == "time x5: starting the mesh"
