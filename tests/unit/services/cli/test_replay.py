"""`tiercel replay`: what it takes, and what it says of a moment that is none."""

from __future__ import annotations

import pytest

from services.cli.app import run
from tests.unit.services.cli.said import complaint


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "--since, --all: give one of them"),
        (["--since", "yesterday"], "--since: expected a time such as 14:30"),
        (["--all", "--until", "25:00"], "--until: expected a time such as 14:30"),
        (["--since", "0001-01-01T00:00+05:00"], "--since: must be in the years 1970 to 9999"),
        (["--all", "--since", "2026-11-28"], "--since, --all: give one of them"),
    ],
)
def test_a_wrong_span_is_said_in_one_line(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is asked of any trainer."""
    assert run(["replay", "drop", *words]) == 2
    assert text in complaint(capsys)
