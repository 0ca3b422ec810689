"""The policy that a mesh on this machine starts with, by the snapshots that there are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from router.dqn.snapshot import load_snapshot, save_snapshot
from router.policies.table import DQN
from services.local import learned
from services.local.learned import TRAINED, start_policy
from trainer.shipped import POLICIES, PROFILES, shipped

TIERS = ("small", "medium", "large")
PROFILE = shipped(PROFILES, "opt-a100.toml")
SHIPPED = shipped(POLICIES, "opt-a100.safetensors")


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIERCEL_STATE", str(tmp_path))
    return tmp_path


def _trained(folder: Path, **changed: Any) -> Path:
    """Puts a snapshot where training leaves it, with other facts than the shipped one's."""
    path = folder.joinpath(*TRAINED)
    path.parent.mkdir(exist_ok=True)
    snapshot = load_snapshot(SHIPPED.read_bytes())
    parts: dict[str, Any] = {
        name: {**getattr(snapshot, name), **part} for name, part in changed.items()
    }
    path.write_bytes(save_snapshot(dataclasses.replace(snapshot, **parts)))
    return path


@pytest.mark.parametrize("name", ["opt-a100", "reference"])
def test_the_shipped_snapshot_of_the_profile_is_used(name: str) -> None:
    """The learned policy is what a mesh of shipped tiers starts with, and it says which one."""
    start = start_policy(shipped(PROFILES, f"{name}.toml"), TIERS)
    assert start.name == DQN
    assert start.snapshot == shipped(POLICIES, f"{name}.safetensors")
    assert start.reason.endswith(f"shipped for {name}")


def test_what_was_trained_here_comes_first(tmp_path: Path) -> None:
    """Somebody trained it for this machine."""
    path = _trained(tmp_path)
    start = start_policy(PROFILE, TIERS)
    assert (start.name, start.snapshot) == (DQN, path)
    assert start.reason.endswith("trained here for opt-a100")


@pytest.mark.parametrize(
    "changed",
    [
        {"fleet": {"profile": "reference"}},
        {"fleet": {"tiers": ["small", "large"]}},
        {"fleet": {"tiers": None}},
        {"evaluation": {"performance": 0.1}},
        {"evaluation": {"availability": 0.9}},
    ],
)
def test_one_that_does_not_fit_is_passed_over(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Of another profile, of other tiers, or worse than price in its own training."""
    _trained(tmp_path, **changed)
    assert start_policy(PROFILE, TIERS).snapshot == SHIPPED


@pytest.mark.parametrize(
    "evaluation",
    [{"baselines": 7}, {"baselines": {"price": []}}, {"performance": "much"}, {}],
)
def test_without_a_judgement_it_is_used(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    """A snapshot that says nothing of price is not called worse."""
    path = _trained(tmp_path, evaluation=evaluation)
    assert start_policy(PROFILE, TIERS).snapshot == path


def test_without_any_it_is_price(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And the reason names what was looked at."""
    monkeypatch.setattr(learned, "named", tmp_path.joinpath)
    start = start_policy(PROFILE, TIERS)
    assert (start.name, start.snapshot) == ("price", None)
    assert "opt-a100" in start.reason
    path = tmp_path.joinpath(*TRAINED)
    path.parent.mkdir()
    path.write_bytes(b"no snapshot")
    start = start_policy(PROFILE, TIERS)
    assert start.name == "price"
    assert str(path) in start.reason


def test_other_tiers_than_those_of_the_snapshot() -> None:
    """A mesh of two of the tiers, or of the same in another order, starts with price."""
    for tiers in (("small", "large"), ("large", "medium", "small")):
        assert start_policy(PROFILE, tiers).name == "price"


def test_a_profile_that_cannot_be_read(tmp_path: Path) -> None:
    """Its reader complains later, with the line."""
    assert start_policy(tmp_path / "nowhere.toml", TIERS).name == "price"


def test_what_was_asked_for_is_used(tmp_path: Path) -> None:
    """Whatever fits; the learned one gets its snapshot, with a picker or without."""
    assert start_policy(PROFILE, TIERS, "static-small") == learned.StartPolicy(
        "static-small", None, ""
    )
    for name in ("dqn", "dqn+least-loaded"):
        start = start_policy(PROFILE, TIERS, name)
        assert (start.name, start.snapshot) == (name, SHIPPED)
    start = start_policy(tmp_path / "nowhere.toml", TIERS, "dqn")
    assert (start.name, start.snapshot) == ("dqn", None)
