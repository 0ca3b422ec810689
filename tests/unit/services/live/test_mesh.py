"""A mesh in stretched time."""

from __future__ import annotations

import dataclasses

import pytest

from services.live.mesh import MOST_REPORT_S, StretchedMesh
from trainer.shipped import POLICIES, PROFILES, QUALITY, shipped

MESH = StretchedMesh(
    "test",
    shipped(PROFILES, "opt-a100.toml"),
    shipped(QUALITY, "opt.toml"),
    shipped(POLICIES, "opt-a100.safetensors"),
    4,
    4,
    20.0,
)


def test_what_routers_know_ages_as_time_is_stretched() -> None:
    """Report and state intervals together, and the limits on their age, grow by the factor."""
    sections = MESH.options().sections
    router, monitor = sections["router_inference"], sections["load_monitor"]
    intervals_s = router["report_interval_s"] + monitor["publish_interval_s"]
    assert intervals_s == pytest.approx(20.0 * 0.18)
    assert router["state_max_age_s"] == 40.0
    assert MESH.deadline_s == MESH.options().tasks[0].default_deadline_s == 8.0


def test_intervals_stay_within_what_settings_allow() -> None:
    """However far time is stretched."""
    assert dataclasses.replace(MESH, time_scale=200.0).report_s == MOST_REPORT_S


def test_without_a_snapshot_nothing_learned_is_started() -> None:
    """Routers would refuse to start with a policy that has no snapshot."""
    options = dataclasses.replace(MESH, snapshot=None).options()
    assert options.policy == "price"
    assert "policy_snapshot" not in options.sections["router_inference"]
    assert MESH.options().policy == "dqn"
