"""``tiercel up``: what it says of options that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cli.app import run
from tests.unit.services.cli.said import complaint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--name", "a b"], "mesh name"),
        (["--paced", "nope"], "--paced: no file and no shipped name 'nope'; known: opt-a100"),
        (["--paced", "empty.toml"], "tables [tiers.NAME]"),
        (
            ["--paced", "opt-a100", "--quality", "nope.toml"],
            "--quality: no file and no shipped name",
        ),
        (["--profile", "nope.toml"], "--profile: no file and no shipped name 'nope.toml'"),
        (["--policy", "nosuch"], "unknown policy 'nosuch'; known: static-small, static-medium"),
        (["--policy", "price+nosuch"], "unknown picker 'nosuch'; known:"),
    ],
)
def test_an_option_that_is_wrong_is_one_line(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is started for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.toml").touch()
    assert run(["up", *options]) == 2
    assert said in complaint(capsys)
