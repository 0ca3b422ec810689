"""Files that commands read and write."""

from __future__ import annotations

import os
import pathlib

import pytest

from services.cli.app import run
from services.cli.files import check_writable, write_text
from services.local.errors import CommandError, InputError
from tests.unit.services.cli.said import complaint


def test_a_result_is_written_with_its_folder(tmp_path: pathlib.Path) -> None:
    """What was measured for minutes needs no folder made before."""
    write_text(tmp_path / "new" / "a.toml", "x")
    assert (tmp_path / "new" / "a.toml").read_text() == "x"


def test_a_result_that_cannot_be_written_is_one_line(tmp_path: pathlib.Path) -> None:
    """With the file and the reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match=r"file/a\.toml: cannot be written: "):
        write_text(tmp_path / "file" / "a.toml", "x")


def test_a_place_for_a_result_need_not_be_there_but_must_take_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made by looking; each reason has its words."""
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new" / "deep" / "a.toml", "--out")
    check_writable(tmp_path / "file", "--out")
    assert not (tmp_path / "new").exists()
    for path, text in (
        (tmp_path, "is a folder, and no file"),
        (tmp_path / "file" / "new" / "a.toml", "file is no folder"),
        (tmp_path / ("x" * 300) / "a.toml", "File name too long"),
    ):
        with pytest.raises(InputError, match=rf"^--out: .*{text}$"):
            check_writable(path, "--out")
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(InputError, match=r"^--out: .* may not be written to$"):
        check_writable(tmp_path / "new" / "a.toml", "--out")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr("os.access", lambda path, _: path == pipe)  # as /dev/null in /dev
    check_writable(pipe, "--out")


@pytest.mark.parametrize(
    "command",
    [
        ["demo"],
        ["evaluate"],
        ["evaluate", "--live"],
        ["train", "--profile", "opt-a100", "--quality", "opt"],
        ["calibrate", "--monitor", "127.0.0.1:1"],
        ["calibrate", "--monitor", "127.0.0.1:1", "--from-production"],
        ["quality", "--monitor", "127.0.0.1:1"],
        ["load", "--router", "127.0.0.1:1"],
    ],
    ids=" ".join,
)
def test_what_takes_minutes_looks_first_whether_its_result_can_be_kept(
    command: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is asked, started or made."""
    (tmp_path / "file").write_text("")
    assert run([*command, "--out", str(tmp_path / "file" / "result")]) == 2
    assert f"--out: {tmp_path / 'file'} is no folder" in complaint(capsys)
