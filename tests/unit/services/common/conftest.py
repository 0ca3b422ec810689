"""What tests of settings share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.services.common.settings_file import PROFILE, QUALITY, Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the settings file beside its profile and quality files."""

    def write(text: str) -> Path:
        (tmp_path / "p.toml").write_text(PROFILE)
        (tmp_path / "q.toml").write_text(QUALITY)
        path = tmp_path / "tiercel.toml"
        path.write_text(text)
        return path

    return write
