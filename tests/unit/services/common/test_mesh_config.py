"""The `[mesh]` section: its own mistakes, and those of the files it names."""

from __future__ import annotations

import pytest

from services.common.mesh_config import load_mesh_files
from services.common.settings import SettingsError, load_settings
from tests.unit.services.common.settings_file import MESH, PROFILE, QUALITY, Root, Write, problems

TIERS = 'tiers = ["small", "large"]\nprofile'
DEADLINE = "default_deadline_s = 0.5"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('name = "reverse"', 'name = "Re!"', "mesh.tasks.0.name: string should match"),
        (TIERS, "tiers = []\nprofile", "mesh.tiers: tuple should"),
        (TIERS, 'tiers = ["small", "small"]\nprofile', "mesh.tiers.1: is used twice"),
        ("redis://127.0.0.1:6379/0", "http://x", "mesh.redis_url: expected redis://"),
        (DEADLINE, "default_deadline_s = nan", "mesh.tasks.0.default_deadline_s: input should"),
        (DEADLINE, "default_deadline_s = -1", "mesh.tasks.0.default_deadline_s: input should"),
        ('profile = "p.toml"\n', "", "mesh.profile: is missing"),
        ("127.0.0.1:8001", "127.0.0.1:80010", "mesh.endpoints.0.address: the port must be"),
        ("127.0.0.1:8001", "127.0.0.1:0", "mesh.endpoints.0.address: the port must be"),
    ],
)
def test_one_mistake(write: Write, old: str, new: str, problem: str) -> None:
    """Each mistake names its key and the limit."""
    assert old in MESH
    found = problems(write(MESH.replace(old, new)))
    assert any(line.startswith(f"FILE: {problem}") for line in found), found


def test_mesh_files_are_read_and_their_mistakes_listed_together(write: Write) -> None:
    """The catalog and the profiles come from the files; both files' mistakes appear."""
    path = write(MESH)
    mesh = load_settings(Root, path=path, environ={}).mesh
    files = load_mesh_files(mesh)
    assert files.catalog.tiers == ("small", "large")
    assert files.endpoint_profiles["triton-0"] is files.profile
    (path.parent / "p.toml").write_text(PROFILE.replace("step_s = 0.01\n", ""))
    (path.parent / "q.toml").write_text(QUALITY.replace("small = 0.5", "tiny = 0.5"))
    with pytest.raises(SettingsError) as caught:
        load_mesh_files(mesh)
    text = "\n".join(caught.value.problems)
    assert "p.toml: tiers.large.step_s: missing" in text
    assert "q.toml: quality.reverse.small: missing" in text
