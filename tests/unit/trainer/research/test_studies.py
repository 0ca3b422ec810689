"""What studies of many runs have in common."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from trainer.research.studies import command_of, keep, numbers


@pytest.mark.parametrize(
    "given",
    [
        ["--seeds", "2", "--record", "a.md", "--workers", "3"],
        ["--json=a.json", "--seeds", "2", "--workers=3"],
    ],
)
def test_the_command_of_a_result_writes_nothing(given: list[str]) -> None:
    """Who repeats it does not mean to put another result into the place of this one."""
    assert command_of("promise", given) == "python -m trainer.research.promise --seeds 2"


def test_results_go_where_they_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the screen always."""
    keep(Namespace(json=None, record=None), [{"a": 1}], "text")
    assert capsys.readouterr().out == "text\n"
    assert list(tmp_path.iterdir()) == []
    rows, page = tmp_path / "rows.json", tmp_path / "page.md"
    keep(Namespace(json=rows, record=page), [{"a": 1}], "text")
    assert (json.loads(rows.read_text()), page.read_text()) == ([{"a": 1}], "text")


def test_numbers_are_parted_by_commas() -> None:
    """As the commands take them."""
    assert numbers("1,0.5") == (1.0, 0.5)
