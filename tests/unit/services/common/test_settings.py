"""Settings: merging, typing, and every mistake at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field

from services.common.mesh_config import MeshSettings, load_mesh_files
from services.common.server import ServerSettings
from services.common.settings import (
    RelativePath,
    SettingsError,
    SettingsModel,
    exit_with_settings_error,
    load_settings,
)

PROFILE = """
name = "p"
source = "assumed"
[tiers.small]
step_s = 0.001
per_sequence_s = 0.0
per_prompt_token_s = 0.0
[tiers.large]
step_s = 0.01
per_sequence_s = 0.0
per_prompt_token_s = 0.0
"""
QUALITY = """
name = "q"
source = "assumed"
[quality.reverse]
small = 0.5
large = 1.0
"""
MESH = """
[mesh]
tiers = ["small", "large"]
profile = "p.toml"
quality = "q.toml"
redis_url = "redis://127.0.0.1:6379/0"
[[mesh.tasks]]
name = "reverse"
default_deadline_s = 0.5
[[mesh.endpoints]]
name = "triton-0"
address = "127.0.0.1:8001"
tiers = ["small", "large"]
models = { large = "opt" }
[trainer]
steps = 3
"""


class Section(ServerSettings):
    """A service's section."""

    listen: str = "127.0.0.1:0"
    metrics_listen: str = ""
    period_s: float = Field(default=0.1, gt=0)
    names: tuple[str, ...] = ()
    path: RelativePath = Path("here")


class Root(SettingsModel):
    """A service's settings."""

    mesh: MeshSettings
    load_monitor: Section = Section()


Write = Callable[[str], Path]


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


def problems(path: Path | None, **kwargs: object) -> list[str]:
    """Returns the problem lines, file name shortened."""
    with pytest.raises(SettingsError) as caught:
        load_settings(Root, path=path, **({"environ": {}} | kwargs))  # type: ignore[arg-type]
    return [line.replace(str(path), "FILE") for line in caught.value.problems]


def test_file_environment_and_command_line_in_that_order(write: Write) -> None:
    """Later layers win, and text is typed by the field it meets."""
    path = write(MESH + '[load_monitor]\nperiod_s = 1.0\nnames = ["a"]\n')
    environ = {
        "TIERCEL_LOAD_MONITOR__PERIOD_S": "2.5",
        "TIERCEL_LOAD_MONITOR__NAMES": '["b", "c"]',
        "TIERCEL_MESH__NAME": "007",
        "TIERCEL_TRAINER__WHATEVER": "not ours",
        "TIERCEL_PLAIN": "no section",
    }
    overrides = {"load_monitor.period_s": "3"}
    settings = load_settings(Root, path=path, environ=environ, overrides=overrides)
    assert settings.load_monitor.period_s == 3.0
    assert settings.load_monitor.names == ("b", "c")
    assert settings.mesh.name == "007"
    assert settings.mesh.profile == path.parent / "p.toml"


def test_all_mistakes_are_reported_together(write: Write) -> None:
    """Typing, unknown keys, limits, cross checks and every layer appear in one list."""
    text = MESH.replace("default_deadline_s = 0.5", "default_deadline_s = 0").replace(
        'address = "127.0.0.1:8001"', 'address = "nowhere"'
    )
    text = text.replace('tiers = ["small", "large"]\nmodels', 'tiers = ["small", "huge"]\nmodels')
    text += '[load_monitor]\nperiod_s = true\ncolour = "red"\nlisten = "0.0.0.0:7411"\n[extra]\n'
    found = problems(
        write(text),
        environ={"TIERCEL_LOAD_MONITOR__GRACE_S": "soon", "TIERCEL_NOPE__X": "1"},
        overrides={"load_monitor.names": "3"},
    )
    expected = [
        "FILE: extra: unknown section",
        "TIERCEL_NOPE__X: nope: unknown section",
        "FILE: mesh.endpoints.0.tiers: unknown tier; mesh.tiers has small, large (got 'huge')",
        "FILE: mesh.endpoints.0.models.large: is no tier of this endpoint (got 'large')",
        "FILE: load_monitor.listen: other machines can reach it",
        "FILE: mesh.tasks.0.default_deadline_s: input should be greater than 0 (got 0)",
        "FILE: mesh.endpoints.0.address: expected host:port, e.g. 127.0.0.1:8001 (got 'nowhere')",
        "FILE: load_monitor.period_s: input should be a valid number (got True)",
        "FILE: load_monitor.colour: unknown key (got 'red')",
        "TIERCEL_LOAD_MONITOR__GRACE_S: load_monitor.grace_s: input should be a valid number",
        "command line: load_monitor.names: input should be a valid array (got 3)",
    ]
    for start in expected:
        assert any(line.startswith(start) for line in found), (start, found)
    assert len(found) == len(expected), "\n".join(found)


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


def test_passwords_stay_out_of_messages(write: Write) -> None:
    """A wrong redis_url is not printed."""
    found = problems(write(MESH.replace("redis://127.0.0.1:6379/0", "tcp://:hunter2@host")))
    assert found
    assert "hunter2" not in "".join(found)


def test_file_that_cannot_be_read_is_the_only_complaint(tmp_path: Path) -> None:
    """A missing or broken file does not bury its cause under missing keys."""
    assert problems(tmp_path / "none.toml") == ["FILE: cannot be read: No such file or directory"]
    broken = tmp_path / "broken.toml"
    broken.write_text("[mesh\n")
    (line,) = problems(broken)
    assert line.startswith("FILE: is not valid TOML: ")
    assert "line 1" in line


def test_no_file_at_all_is_one_clear_line() -> None:
    """Who forgot --config is told so, and nothing else."""
    assert problems(None) == ["defaults: mesh: is missing; give a settings file with --config"]


def test_exit_code_is_2_and_every_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The person who started it sees all mistakes and no traceback."""
    with pytest.raises(SystemExit) as caught:
        exit_with_settings_error(SettingsError(["a: b: c", "d: e: f"]))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "a: b: c\nd: e: f\n"


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
