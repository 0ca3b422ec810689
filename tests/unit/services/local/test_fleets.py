"""Which tiers an embedded mesh serves."""

from __future__ import annotations

import pathlib

import pytest

from router.profile import parse_profile
from services.local.fleets import REFERENCE_TIERS, PacedFleetOptions, ReferenceFleet
from trainer.shipped import PROFILES, shipped


def test_services_read_a_profile_stretched_as_the_tiers_are(tmp_path: pathlib.Path) -> None:
    """Tiers that take ten times as long are predicted to; nothing but time changes."""
    path = shipped(PROFILES, "opt-a100.toml")
    fleet = PacedFleetOptions(path, REFERENCE_TIERS, device_count=4, time_scale=10.0)
    kept = fleet.kept_profile(path, tmp_path)
    plain = parse_profile(path.read_text(), "plain", REFERENCE_TIERS)
    read = parse_profile(kept.read_text(), "kept", REFERENCE_TIERS)
    assert read.name == plain.name
    for name, tier in plain.scaled(10.0).tiers.items():
        assert read.tiers[name].unloaded_latency_s(124, 8) == pytest.approx(
            tier.unloaded_latency_s(124, 8)
        )
        assert read.tiers[name].max_batch == tier.max_batch


def test_reference_tiers_keep_their_profile(tmp_path: pathlib.Path) -> None:
    """Nothing is written for them."""
    path = tmp_path / "own.toml"
    assert ReferenceFleet().kept_profile(path, tmp_path) == path
    assert list(tmp_path.iterdir()) == []
