"""``tiercel train``: what it says of inputs that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cli.app import run
from tests.unit.services.cli.said import complaint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--profile", "nope", "--quality", "opt"], "--profile: no file and no shipped name"),
        (["--profile", "opt-a100", "--quality", "nope"], "--quality: no file and no shipped name"),
        (["--profile", "opt-a100", "--quality", "empty.toml"], "empty.toml"),
    ],
)
def test_an_input_that_is_wrong_is_one_line(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bad input ends the command before anything is compiled."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.toml").touch()
    assert run(["train", *options]) == 2
    assert said in complaint(capsys)
