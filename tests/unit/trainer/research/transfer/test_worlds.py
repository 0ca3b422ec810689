"""The worlds that a snapshot may never have seen."""

from __future__ import annotations

import argparse

import pytest

from router.catalog import QualityTable
from router.profile import LatencyProfile
from trainer.research.transfer.worlds import SIZES, World, worlds_of
from trainer.research.tuning import add_profile_options, profile_of
from trainer.shipped import shipped


def files(name: str, quality: str) -> tuple[LatencyProfile, QualityTable]:
    """Returns a shipped profile and a shipped quality table."""
    parser = argparse.ArgumentParser()
    add_profile_options(parser)
    paths = shipped("profiles", f"{name}.toml"), shipped("quality", f"{quality}.toml")
    return profile_of(parser.parse_args(["--profile", str(paths[0]), "--quality", str(paths[1])]))


def worlds() -> dict[str, World]:
    """Returns the worlds by name."""
    found = worlds_of(*files("opt-a100", "opt"), files("reference", "reference"))
    return {world.name: world for world in found}


def test_fleets_and_ladders_are_as_named() -> None:
    """As policies are compared in them, and as they are trained for them."""
    known = worlds()
    assert [known[f"{n} device{'s'[: n > 1]}"].devices for n in SIZES] == list(SIZES)
    tiers = {"1 device": 3, "two tiers": 2, "four tiers": 4, "flat ladder": 3, "reference tiers": 3}
    for name, count in tiers.items():
        setting, mesh = known[name].setting(), known[name].mesh()
        assert setting.catalog.tiers == mesh.catalog.tiers
        assert len(setting.catalog.tiers) == count
        assert len(setting.fleet.devices) == len(mesh.devices) == known[name].devices
        assert setting.deadline_s == mesh.deadline_s
        assert setting.lengths == mesh.lengths


def test_a_ladder_keeps_its_order() -> None:
    """A tier between costs more than the one below and less than the one above; so with quality."""
    for name in ("four tiers", "flat ladder"):
        world = worlds()[name]
        steps = [tier.step_s for tier in world.profile.tiers.values()]
        assert steps == sorted(steps)
        quality_KT = world.setting().catalog.quality_KT
        assert (quality_KT[:, 1:] > quality_KT[:, :-1]).all()
    first, *_, last = worlds()["flat ladder"].profile.tiers.values()
    assert last.step_s / first.step_s == pytest.approx((0.0105 / 0.0014) ** 0.5)
