"""The command line as a whole: what it says when something is wrong."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from router.folders import state_folder
from services.cli.app import COMMANDS, run
from tests.unit.services.cli.said import complaint


def test_without_arguments_it_says_what_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    """The bare command is a question, not a mistake."""
    assert run([]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name.replace('_', '-')} " in out for name in COMMANDS)


def test_a_group_alone_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    """As the bare command does: on standard output, with its lines."""
    assert run(["policy"]) == 0
    assert "\nCommands:\n" in capsys.readouterr().out


def test_a_slip_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    """Among all commands, though none was imported for it."""
    assert run(["genrate"]) == 2
    assert "Did you mean 'generate'?" in complaint(capsys)


def test_an_interrupted_command_has_the_exit_code_of_a_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """128 and the signal's number, as shells have it."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("services.cli.status.resolve", interrupted)
    assert run(["status"]) == 130


def test_shells_can_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of commands, by what the installed script asks."""
    done = subprocess.run(
        [sys.executable, "-m", "services.cli"],
        env={**os.environ, "_TIERCEL_COMPLETE": "complete_bash", "COMP_WORDS": "tiercel expl",
             "COMP_CWORD": "1"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["explain"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense"),
        (["up", "--routers", "0"], "--routers"),
        (["up", "--workers", "0"], "--workers"),
        (["up", "--paced", "no-such-profile"], "--paced: no file"),
        (["up", "--paced", "opt-a100", "--time-scale", "0"], "--time-scale"),
        (["up", "--paced", "opt-a100", "--time-scale", "1e9"], "default_deadline_s"),
        (["up", "--profile", "missing.toml"], "--profile: no file"),
        (["up", "--name", "Not Good"], "mesh name"),
        (["generate", "rev:ab=", "--router", "nowhere"], "--router"),
        (["generate", "rev:ab=", "--deadline", "-1", "--router", "127.0.0.1:1"], "--deadline"),
        (
            ["generate", "rev:ab=", "--max-tokens", "99999999999", "--router", "127.0.0.1:1"],
            "--max-tokens",
        ),
        (
            ["load", "--rate=-1", "--mix=sort", "--deadline=1", "--router=127.0.0.1:1"],
            "--rate",
        ),
        (["load", "--mix", "sort=x", "--router", "127.0.0.1:1"], "--mix"),
        (["load", "--phases", "calm", "--router", "127.0.0.1:1"], "--phases"),
        (["load", "--square", "1,2", "--router", "127.0.0.1:1"], "--square"),
        (["load", "--spec", "missing.toml"], "missing.toml"),
        (["policy", "use"], "POLICY"),
        (["endpoint", "add", "e", "nowhere", "--tier", "small"], "ADDRESS"),
        (["endpoint", "add", "e", "127.0.0.1:1"], "--tier"),
        (["endpoint", "list", "--monitor", "127.0.0.1:0"], "--monitor"),
        (["endpoint", "remove", "e", "--drain", "-1", "--monitor", "127.0.0.1:1"], "--drain"),
        (["policy", "rollback", "--trainer", "x"], "--trainer"),
        (["train", "--profile", "opt-a100", "--quality", "opt", "--budget-s", "nan"], "--budget-s"),
        (["evaluate", "--live", "--load", "nan"], "--load"),
        (["train", "--profile", "opt-a100", "--max-rate-rps", "inf"], "--max-rate-rps"),
        (["top", "--seconds", "-1"], "--seconds"),
        (["up", "--devices", "4"], "--devices: only with --paced"),
        (["up", "--time-scale", "2"], "--time-scale: only with --paced"),
        (["up", "--paced", "opt-a100", "--profile", "opt-a100"], "--profile: not with --paced"),
        (["demo", "--policies", "price,greddy"], "--policies: unknown policy"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every mistake of the user is named, without a traceback."""
    assert run(arguments) == 2
    assert message.lower() in complaint(capsys).lower()


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "rev:ab="],
        ["generate", "rev:ab=", "--router", "127.0.0.1:1"],
        ["load", "--router", "127.0.0.1:1", "--duration", "1"],
        ["policy", "list", "--router", "127.0.0.1:1"],
        ["policy", "use", "greedy", "--trainer", "127.0.0.1:1"],
        ["policy", "rollback", "--trainer", "127.0.0.1:1"],
        ["endpoint", "list", "--monitor", "127.0.0.1:1"],
        ["top", "--monitor", "127.0.0.1:1"],
        ["top", "--seconds", "inf", "--monitor", "127.0.0.1:1"],
        ["status"],
        ["status", "--mesh", "other"],
    ],
)
def test_a_mesh_that_is_not_there_is_one_line_and_exit_code_1(
    arguments: list[str],
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An unreachable part is named with what to do about it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("services.loadgen.run.CONNECT_TIMEOUT_S", 0.2)
    assert run(arguments) == 1
    assert "127.0.0.1:1" in (text := complaint(capsys)) or "tiercel up" in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "tiercel: a file: No space left on device"),
        (OSError(30, "Read-only file system", "/x/y"), "tiercel: /x/y: Read-only file system"),
        (NotADirectoryError(20, "Not a directory", "/f/run"), "tiercel: /f/run: Not a directory"),
    ],
)
def test_a_disk_that_takes_no_file_is_no_bug(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with the file, where the system tells it."""

    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("services.cli.status.resolve", broken)
    assert run(["status"]) == 1
    assert complaint(capsys).strip() == said


def test_a_package_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a wheel that was installed without it: nobody has to read a traceback for that."""

    def incomplete(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'numba'", name="numba.core")

    monkeypatch.setattr("services.cli.status.resolve", incomplete)
    assert run(["status"]) == 1
    said = "tiercel: the package numba is missing: pip install 'tiercel[trainer]'\n"
    assert complaint(capsys) == said


@pytest.mark.parametrize(
    "arguments",
    [
        ["target", "set", "caf\udce9", "0.9"],
        ["policy", "use", "caf\udce9", "--trainer", "127.0.0.1:1"],
        ["endpoint", "remove", "caf\udce9", "--monitor", "127.0.0.1:1"],
    ],
)
def test_bytes_that_are_no_text_are_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As Python hands over what a terminal with another character set has sent."""
    assert run(arguments) == 2
    assert "'caf\\udce9': is not valid UTF-8" in complaint(capsys)


@pytest.mark.parametrize("content", [b"a\0b", b"one\ntwo\n", "ключ".encode(), b"\x1b[31m"])
def test_a_file_that_holds_no_key_is_named(
    content: bytes, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No header holds it, nor in part an environment."""
    path = tmp_path / "key"
    path.write_bytes(content)
    assert run(["--api-key-file", str(path), "status"]) == 2
    assert f"--api-key-file: {path}: is no line of printable ASCII" in complaint(capsys)


def test_a_file_of_a_key_that_cannot_be_read_is_named_with_its_option(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option may come from a script, and say nothing by itself."""
    assert run(["--api-key-file", str(tmp_path / "gone"), "status"]) == 2
    assert complaint(capsys).startswith(f"tiercel: --api-key-file: {tmp_path}/gone: cannot be read")


@pytest.mark.parametrize("inner", ["", "deeper"])
def test_a_state_that_cannot_be_made_is_told(
    inner: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A place in which nobody can make a folder is no bug."""
    monkeypatch.setenv("TIERCEL_STATE", f"/proc/none/{inner}")
    monkeypatch.setattr(
        "services.cli.status.resolve",
        lambda *_, **__: state_folder("run").mkdir(parents=True),
    )
    assert run(["status"]) == 1
    assert "/proc/none: no folder can be made there" in complaint(capsys)


def test_a_current_folder_that_is_gone_is_told(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever wanted to know it."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr("services.cli.status.resolve", lambda *_, **__: pathlib.Path.cwd())
    assert run(["status"]) == 1
    assert "the current folder is gone" in complaint(capsys)


def test_a_bug_is_one_line_and_keeps_its_traceback_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even what nobody expected does not spill a traceback over the user."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("services.cli.status.resolve", broken)
    assert run(["status"]) == 1
    line = complaint(capsys)
    assert "internal error: RuntimeError: two lines" in line
    path = pathlib.Path(line.rpartition("details: ")[2].rstrip(")\n"))
    assert "Traceback" in path.read_text()
    path.unlink()

    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    assert run(["status"]) == 1
    assert "(details: not kept: [Errno 2] No usable temporary directory found)" in complaint(capsys)
