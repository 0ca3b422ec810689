"""The study of traffic that stops and comes back."""

from __future__ import annotations

import json
import pathlib

import pytest

from trainer.research.pause import main

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles
ARGUMENTS = ["--seeds", "1", "--loads", "4.6", "--pauses", "0,1", "--policies", "price"]


def test_what_comes_back_is_judged_by_itself(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row per pause, and a column for it in the table; steady traffic is the pause of 0."""
    assert main([*ARGUMENTS, "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["pause_s"] for row in rows] == [0.0, 1.0]
    steady, after = rows
    assert after["availability"] > 0.99
    assert after["performance"] > 0.95 * steady["performance"]
    assert "| 4.6 | price | 1.000/" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--loads", "0"], ["--pauses=-1"]])
def test_a_wrong_number_is_told(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With its option."""
    assert main([*ARGUMENTS, *wrong]) != 0
    assert wrong[0].partition("=")[0] in capsys.readouterr().err
