"""`tiercel replay`: what it takes, and what it says of a moment that is none."""

from __future__ import annotations

import pytest

from services.cli.app import run
from tests.unit.services.cli.said import complaint


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "--since, or --all"),
        (["--since", "yesterday"], "--since: 'yesterday' is no moment"),
        (["--all", "--until", "25:00"], "--until: '25:00' is no moment"),
        (["--all", "--since", "2026-11-28"], "--since, or --all"),
    ],
)
def test_a_wrong_span_is_said_in_one_line(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is asked of any trainer."""
    assert run(["replay", "drop", *words]) == 2
    assert text in complaint(capsys)
