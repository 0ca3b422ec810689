"""A calibration of paced tiers with other names, order and limits than ours, on a real Triton."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from router.profile import parse_profile
from router.profile_error import MOST_ERROR
from services.calibrate.calibration import calibrate
from services.calibrate.questions import made_questions
from services.calibrate.tiers import LiveTier, with_facts
from services.local.triton.repository.paced import PacedFleet, write_paced_repository
from services.local.triton.server.config import TritonServerConfig
from services.local.triton.server.process import TritonServer

pytestmark = pytest.mark.triton

MAX_BATCH = 16
# Prompts are counted in words, and cost more than anything else.
TRUTH = f"""
name = "foreign"
source = "assumed"
[tiers.gross]
step_s = 0.030
per_sequence_s = 0.003
per_prompt_token_s = 100e-6
max_batch = {MAX_BATCH}
[tiers.klein]
step_s = 0.012
per_sequence_s = 0.0015
per_prompt_token_s = 40e-6
max_batch = {MAX_BATCH}
[tiers.mittel]
step_s = 0.020
per_sequence_s = 0.002
per_prompt_token_s = 60e-6
max_batch = {MAX_BATCH}
"""
# A machine that stands still for a moment spoils a measurement; a wrong method spoils all of them.
ATTEMPTS = 6


async def test_the_profile_is_within_a_tenth_of_the_truth(tmp_path: Path) -> None:
    """Every cost of every tier, prompts of 900 words, the order and a limit that no model tells."""
    (tmp_path / "truth.toml").write_text(TRUTH)
    truth = parse_profile(TRUTH, "truth").tiers
    fleet = PacedFleet(profile=tmp_path / "truth.toml", tiers=tuple(truth), sharing="own")
    [repository] = write_paced_repository(tmp_path / "fleet", fleet).servers
    config = TritonServerConfig(repository=repository.path, log_path=tmp_path / "triton.log")
    asked = [
        dataclasses.replace(each, max_output_tokens=6) for each in made_questions([20, 900], 0)
    ]
    with TritonServer(config) as server:
        live = [
            LiveTier(tier, model, server.grpc_address, "e", placement.device)
            for placement in repository.devices
            for tier, model in placement.models.items()
        ]
        known = await with_facts(live)
        assert {each.max_batch for each in known} == {MAX_BATCH}
        # One of them is measured as if its model did not say.
        known = [
            dataclasses.replace(each, max_batch=0) if each.tier == "klein" else each
            for each in known
        ]
        for attempt in range(ATTEMPTS):
            found = await calibrate(
                known, asked, name="t", bytes_per_token=4.0, run_s=0.3, seed=attempt
            )
            off = {
                (tier, key): getattr(costs, key) / getattr(truth[tier], key) - 1.0
                for tier, costs in found.profile.tiers.items()
                for key in ("step_s", "per_sequence_s", "per_prompt_token_s", "max_batch")
            }
            if max(map(abs, off.values())) <= 0.1:
                break
    assert max(map(abs, off.values())) <= 0.1, off
    assert list(found.profile.tiers) == ["klein", "mittel", "gross"]
    assert found.refusals(MOST_ERROR) == []
    assert found.bytes_per_token["gross"] == pytest.approx(6.0, abs=0.3)
