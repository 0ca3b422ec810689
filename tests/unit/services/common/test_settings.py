"""Settings: merging, typing, and every mistake at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.settings import SettingsError, exit_with_settings_error, load_settings
from tests.unit.services.common.settings_file import MESH, Root, Write, problems


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
