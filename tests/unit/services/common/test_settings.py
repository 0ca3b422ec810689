"""Settings: merging, typing, and every mistake at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.settings import (
    SettingsError,
    exit_with_settings_error,
    load_settings,
    misspelled_variables,
)
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
    text += '[load_monitor]\nperiod_s = true\ncolour = "red"\n'
    text += 'metrics_listen = "0.0.0.0:9411"\n[extra]\n'
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
        "FILE: load_monitor.metrics_listen: other machines can reach it",
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


def test_a_key_with_a_slip_gets_a_suggestion(write: Write) -> None:
    """Also deeper down, and where a word of it was left out."""
    text = MESH.replace("default_deadline_s", "deadline_s") + "[load_monitor]\nperod_s = 1\n"
    text += "nothing_like_it = 1\n"
    found = problems(write(text))
    assert "FILE: load_monitor.perod_s: unknown key; did you mean period_s? (got 1)" in found
    assert "FILE: load_monitor.nothing_like_it: unknown key (got 1)" in found
    known = "unknown key; did you mean default_deadline_s?"
    assert f"FILE: mesh.tasks.0.deadline_s: {known} (got 0.5)" in found


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
    assert line.startswith("FILE: not TOML: ")
    assert "line 1" in line


def test_no_file_at_all_is_one_clear_line() -> None:
    """Who forgot --config is told so, and nothing else."""
    assert problems(None) == ["defaults: mesh: is missing; give a settings file with --config"]


def test_a_current_folder_that_is_gone_is_one_clear_line(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is nothing to settings whose file has a whole path, as at a later reading."""
    path, gone = write(MESH), tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert load_settings(Root, path=path, environ={}).mesh.profile == path.parent / "p.toml"
    for name, relative in (("defaults", None), ("mesh.toml", Path("mesh.toml"))):
        with pytest.raises(SettingsError) as caught:
            load_settings(Root, path=relative, environ={})
        assert str(caught.value).startswith(f"{name}: ")
        assert len(caught.value.problems) == 1


def test_exit_code_is_2_and_every_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The person who started it sees all mistakes and no traceback."""
    with pytest.raises(SystemExit) as caught:
        exit_with_settings_error(SettingsError(["a: b: c", "d: e: f"]))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "a: b: c\nd: e: f\n"


@pytest.mark.parametrize(
    ("text", "got"),
    [("true", True), ("True", True), ("TRUE", True), ("1", True), ("False", False), ("0", False)],
)
def test_booleans_of_the_environment_are_taken_as_people_write_them(
    write: Write, text: str, got: bool
) -> None:
    """A boolean in a variable or on the command line may be a word of any case, or 1 or 0."""
    environ = {"TIERCEL_LOAD_MONITOR__INSECURE_OPEN_TO_NETWORK": text}
    settings = load_settings(Root, path=write(MESH), environ=environ)
    assert settings.load_monitor.insecure_open_to_network is got


def test_an_empty_variable_leaves_a_number_as_it_is(write: Write) -> None:
    """A variable without a value counts as not set, but empties a text."""
    environ = {
        "TIERCEL_LOAD_MONITOR__PERIOD_S": "",
        "TIERCEL_LOAD_MONITOR__INSECURE_OPEN_TO_NETWORK": "",
        "TIERCEL_LOAD_MONITOR__NAMES": "",
        "TIERCEL_MESH__REDIS_URL": "",
    }
    settings = load_settings(
        Root, path=write(MESH + "[load_monitor]\nperiod_s = 2.0\n"), environ=environ
    )
    assert settings.load_monitor.period_s == 2.0
    assert settings.load_monitor.names == ()
    assert settings.mesh.redis_url == ""


def test_a_byte_order_mark_is_accepted(write: Write) -> None:
    """Editors that put a mark before the text do no harm."""
    path = write("\ufeff" + MESH)
    assert load_settings(Root, path=path, environ={}).mesh.tiers == ("small", "large")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("maybe", "load_monitor.insecure_open_to_network: must be true or false (got 'maybe')"),
        ("2", "load_monitor.insecure_open_to_network: must be true or false (got 2)"),
        ("9" * 5000, "load_monitor.insecure_open_to_network: must be true or false (got '999"),
        ("[" * 5000, "load_monitor.insecure_open_to_network: must be true or false (got '[[["),
        ("\udcff", "load_monitor.insecure_open_to_network: is not valid UTF-8 (got '\\udcff')"),
    ],
)
def test_a_wrong_value_is_one_short_line(write: Write, value: str, problem: str) -> None:
    """Whatever a variable holds, the answer is one line with key, value and what is allowed."""
    name = "TIERCEL_LOAD_MONITOR__INSECURE_OPEN_TO_NETWORK"
    (line,) = problems(write(MESH), environ={name: value})
    assert line.startswith(f"{name}: {problem}")
    assert len(line) < 300


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "-1e999", "9" * 5000, "1" + "0" * 400])
def test_numbers_no_float_holds_are_one_line_each(write: Write, value: str) -> None:
    """Neither a file nor a variable brings in a number that is none."""
    text = f"{MESH}[load_monitor]\nperiod_s = {value}\n"
    (line,) = problems(write(text))
    assert line.startswith("FILE: ")
    (line,) = problems(write(MESH), environ={"TIERCEL_LOAD_MONITOR__PERIOD_S": value})
    assert line.startswith("TIERCEL_LOAD_MONITOR__PERIOD_S: load_monitor.period_s: ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a = 1\na = 2\n", "not TOML"),
        ("a = " + "[" * 100_000, "not TOML"),
        ("[mesh]\n" * 2, "not TOML"),
        ("# " + "x" * 5_000_000, "is larger than"),
        ("mesh = 3\n", "mesh: "),
        ("[[mesh]]\n", "mesh: "),
    ],
)
def test_a_file_of_another_shape_is_one_line(write: Write, text: str, problem: str) -> None:
    """Duplicate keys, endless nesting and huge files are named like every mistake."""
    (line,) = problems(write(text))
    assert line.startswith(f"FILE: {problem}")


def test_control_characters_of_a_key_do_not_break_the_line(write: Write) -> None:
    """A mistake stays on its line, and keys of any length are cut."""
    for key in ("a\\nb", "x" * 5000):
        (line,) = problems(write(f'{MESH}[load_monitor]\n"{key}" = 1\n'))
        assert "\n" not in line
        assert len(line) < 500


def test_a_folder_and_an_unreadable_file_are_named(tmp_path: Path) -> None:
    """What is no file is said to be none."""
    assert problems(tmp_path) == ["FILE: cannot be read: Is a directory"]
    (line,) = problems(tmp_path / ("x" * 300))
    assert "cannot be read: File name too long" in line
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert problems(binary) == ["FILE: is not valid UTF-8"]


def test_a_variable_with_one_underscore_is_told_from_those_of_others() -> None:
    """The right name is given; a name that is no setting with two underscores is not ours."""
    environ = {
        "TIERCEL_LOAD_MONITOR_PERIOD_S": "1",
        "TIERCEL_MESH_CONFIG": "x",
        "TIERCEL_MESH": "m",
    }
    assert misspelled_variables(Root, environ) == {
        "TIERCEL_LOAD_MONITOR_PERIOD_S": "TIERCEL_LOAD_MONITOR__PERIOD_S"
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [("path", "2024-01-01"), ("path", "07:32:00"), ("names", "['a', 1979-05-27T07:32:00Z]")],
)
def test_a_date_is_no_text(write: Write, key: str, value: str) -> None:
    """TOML makes one of what has no quotes; it was taken for the text that it is shown as."""
    found = problems(write(f"{MESH}[load_monitor]\n{key} = {value}\n"))
    assert any("is a date or a time; put a text in quotes" in line for line in found)


def test_a_path_in_a_circle_is_one_line(write: Write, tmp_path: Path) -> None:
    """Of symbolic links, the last of them named by the settings."""
    (tmp_path / "here").symlink_to("here")
    (line,) = problems(write(f'{MESH}[load_monitor]\npath = "here"\n'))
    assert line == "FILE: load_monitor.path: is a loop of symbolic links (got 'here')"


def test_links_are_followed_at_each_reading(tmp_path: Path) -> None:
    """Kubernetes mounts files by links, and renews all of them by changing one."""
    folder = tmp_path / "config"
    (folder / "..1").mkdir(parents=True)
    text = MESH.replace('"p.toml"', '"../profiles/p.toml"') + '[load_monitor]\npath = "key"\n'
    (folder / "..1" / "tiercel.toml").write_text(text)
    (folder / "..data").symlink_to("..1")
    for name in ("tiercel.toml", "key"):
        (folder / name).symlink_to(f"..data/{name}")
    settings = load_settings(Root, path=folder / "tiercel.toml", environ={})
    assert settings.mesh.profile == tmp_path / "profiles" / "p.toml"
    assert settings.load_monitor.path == folder / "key"


def test_a_variable_of_several_lines_is_no_number(write: Write) -> None:
    """What stands in the others would be left out without a word."""
    environ = {"TIERCEL_LOAD_MONITOR__PERIOD_S": "5\nperiod = 6"}
    (line,) = problems(write(MESH), environ=environ)
    assert line.startswith("TIERCEL_LOAD_MONITOR__PERIOD_S: load_monitor.period_s: input should be")
