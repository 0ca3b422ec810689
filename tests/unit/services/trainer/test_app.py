"""What the trainer refuses before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.common.settings import SettingsError
from services.trainer.app import build_app
from services.trainer.settings import Settings
from tests.unit.services.common.settings_file import PROFILE, QUALITY


def settings(folder: Path, **own: Any) -> Settings:
    """Settings of a trainer whose monitor and Redis are on other machines."""
    (folder / "p.toml").write_text(PROFILE)
    (folder / "q.toml").write_text(QUALITY)
    mesh = {
        "tiers": ["small", "large"],
        "profile": str(folder / "p.toml"),
        "quality": str(folder / "q.toml"),
        "redis_url": "redis://10.0.0.7/0",
        "load_monitor_address": "10.0.0.8:7411",
        "tasks": [{"name": "reverse", "default_deadline_s": 1.0}],
        "endpoints": [{"name": "e", "address": "10.0.0.5:8001", "tiers": ["small"]}],
    }
    return Settings.model_validate({"mesh": mesh, "trainer": own})


def test_what_would_cross_a_network_in_plain_text_is_refused(tmp_path: Path) -> None:
    """It calls no endpoint, so theirs are none of its business; a setting gives leave."""
    with pytest.raises(SettingsError) as caught:
        build_app(settings(tmp_path))
    assert [line.partition(": ")[0] for line in caught.value.problems] == [
        "mesh.load_monitor_address",
        "mesh.redis_url",
    ]
    build_app(settings(tmp_path, insecure_open_to_network=True))


def test_a_data_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A trainer would learn and could save nothing of it; a folder that is missing is made."""
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"trainer\.data_dir: is no folder \(got '.*file'\)"):
        build_app(settings(tmp_path, insecure_open_to_network=True, data_dir=tmp_path / "file"))
    build_app(settings(tmp_path, insecure_open_to_network=True, data_dir=tmp_path / "new"))
