"""What ``tiercel demo`` prints."""

from __future__ import annotations

import pathlib

import pytest

from services.cli.app import run
from services.cli.demo import result_table
from services.cli.output import console
from services.demo.plan import PHASES
from services.demo.report import write_report
from tests.unit.services.demo.runs import TIERS, facts, records, run_of


def test_the_final_table_shows_every_policy_and_phase(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nine columns of numbers and the mix, one row per phase."""
    report = write_report(tmp_path, facts(), [run_of("dqn", records(1))], tiers=TIERS)
    console().print(result_table(report))
    out = capsys.readouterr().out
    assert all(phase in out for phase in PHASES)
    assert "dqn" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--story", "rise"], "--story: must be shift, got 'rise'"),
        (["--story", "shift", "--train-s", "9"], "--train-s: the story has none"),
        (["--story", "shift", "--policies", "price"], "--policies: the story has none"),
        (["--story", "shift", "--burst-factor", "2"], "--burst-factor: the story has none"),
    ],
)
def test_a_story_takes_no_choice_that_it_does_not_have(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is started."""
    assert run(["demo", *words]) == 2
    assert says in capsys.readouterr().err
