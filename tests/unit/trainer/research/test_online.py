"""The study of online learning: its worlds, its rows, its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from router.dqn.snapshot import Snapshot, save_snapshot
from router.features import FEATURE_COUNT, FEATURES, SCHEMA
from tests.unit.router import fleets
from trainer.learning.network import initial_weights
from trainer.research import online
from trainer.research.online import WORLDS, header_lines, known_setting, main, row_line, study_rows
from trainer.simulation.setting import shared_fleet_setting

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

PROFILE, QUALITY = fleets.profile(), fleets.quality()
NOMINAL = shared_fleet_setting("test", PROFILE, QUALITY, tiers=tuple(PROFILE.tiers))


def _start() -> bytes:
    weights = initial_weights(FEATURE_COUNT, 4, np.random.default_rng(0))
    names = tuple(feature.name for feature in FEATURES)
    return save_snapshot(Snapshot(weights, SCHEMA, names))


def test_worlds_change_what_they_say() -> None:
    """One tier's costs, or the task mix; the others stay as they are."""
    largest, middle = tuple(PROFILE.tiers)[-1], tuple(PROFILE.tiers)[1]
    factor = {}
    for world in WORLDS:
        setting = known_setting(world, NOMINAL, PROFILE, QUALITY)
        tiers = setting.profiles[""].tiers
        factor[world] = {
            name: tiers[name].step_s / tier.step_s for name, tier in PROFILE.tiers.items()
        }
        assert (setting.shares != NOMINAL.shares) == (world == "skewed")
    assert factor["largest +40 %"] == pytest.approx(factor["nominal"] | {largest: 1.4})
    assert factor["largest x2.5"] == pytest.approx(factor["nominal"] | {largest: 2.5})
    assert factor["middle x2.5"] == pytest.approx(factor["nominal"] | {middle: 2.5})


def test_rows_follow_a_run_and_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row per exploration and seed, the same every time; knowing more changes nothing here."""
    monkeypatch.setattr(online, "RATES_RPS", (40.0,))
    monkeypatch.setattr(online, "MARKS", (1, 2))
    monkeypatch.setattr(online, "STRETCH_REQUESTS", 400)
    monkeypatch.setattr(online, "TEST_REQUESTS", 200)
    monkeypatch.setattr(online, "MIN_TRANSITIONS", 100)

    def rows() -> list[online.StudyRow]:
        found = study_rows(PROFILE, QUALITY, NOMINAL, _start(), worlds=("nominal",), seeds=(1,))
        return list(found)

    first = rows()
    assert [row.epsilon for row in first] == list(online.EXPLORATION)
    assert all(row.start == row.told and len(row.after) == 2 for row in first)
    assert first == rows()
    columns = header_lines().splitlines()[0].count("|")
    assert {row_line(row).count("|") for row in first} == {columns}


def test_missing_snapshot_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Exit status 2 and one line that names the file."""
    assert main(["--snapshot", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
