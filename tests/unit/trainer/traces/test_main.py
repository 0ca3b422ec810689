"""The command on a file that is not as promised."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.traces.__main__ import main


def test_the_command_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback: the error on the error output, exit code 2."""
    assert main([str(tmp_path / "t.csv")]) == 2
    assert capsys.readouterr().err.strip().endswith("t.csv: no such file")
