"""Files that commands read and write."""

from __future__ import annotations

import pathlib

import pytest

from services.cli.files import write_text
from services.local.errors import CommandError


def test_a_result_is_written_with_its_folder(tmp_path: pathlib.Path) -> None:
    """What was measured for minutes needs no folder made before."""
    write_text(tmp_path / "new" / "a.toml", "x")
    assert (tmp_path / "new" / "a.toml").read_text() == "x"


def test_a_result_that_cannot_be_written_is_one_line(tmp_path: pathlib.Path) -> None:
    """With the file and the reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match=r"file/a\.toml: cannot be written: "):
        write_text(tmp_path / "file" / "a.toml", "x")
