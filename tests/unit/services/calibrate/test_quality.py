"""Measured quality: intervals, what is left out, and files."""

from __future__ import annotations

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.catalog import parse_quality
from services.calibrate.checks import Check
from services.calibrate.quality import QualityMeasurement, Score, measure_quality, read_scores
from services.calibrate.questions import Question
from services.calibrate.tiers import LiveTier
from services.local.errors import CommandError, InputError
from tests.fakes.triton import FakeTriton, Script

TIERS = ("small", "large")


@given(st.integers(1, 2000), st.data())
def test_the_interval_holds_the_share(asked: int, data: st.DataObject) -> None:
    """The 95 % interval lies in 0 to 1 around the share."""
    score = Score(data.draw(st.integers(0, asked)), asked)
    low, high = score.interval
    assert 0 <= low <= score.share + 1e-12
    assert score.share - 1e-12 <= high <= 1


def test_the_interval_is_wilsons() -> None:
    """A value worked out by hand from the formula: 8 of 10."""
    low, high = Score(8, 10).interval
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)


def test_quality_is_standardised_by_the_largest_tier_and_readable_again() -> None:
    """The written file parses; a smaller tier that scored higher counts as 1.0."""
    measured = QualityMeasurement.of(
        {
            "sort": {"small": Score(40, 100), "large": Score(80, 100)},
            "recall": {"small": Score(90, 100), "large": Score(80, 100)},
        },
        TIERS,
    )
    table = parse_quality(measured.to_toml("reference", "Test."), "test")
    assert table.quality["sort"] == {"small": 0.5, "large": 1.0}
    assert table.quality["recall"] == {"small": 1.0, "large": 1.0}
    assert table.raw["sort"]["large"] == 0.8
    assert table.source == "measured"
    assert measured.to_json()["sort"]["small"]["examples"] == 100


def test_nothing_told_apart_from_nothing_is_no_table() -> None:
    """Tiers that answered none of the questions have no quality, least of all 1.0."""
    with pytest.raises(CommandError, match=r"sort: large, the largest tier, scored 0\.000"):
        QualityMeasurement.of({"sort": {tier: Score(0, 300) for tier in TIERS}}, TIERS)


def test_a_task_no_better_than_guessing_is_not_in_the_table() -> None:
    """One of two choices, right in 55 of 100: no quality; a task beside it stays."""
    measured = QualityMeasurement.of(
        {
            "coin": {"small": Score(50, 100, 0.5), "large": Score(55, 100, 0.5)},
            "sure": {"small": Score(60, 100, 0.5), "large": Score(90, 100, 0.5)},
        },
        TIERS,
    )
    assert list(measured.scores) == ["sure"]
    assert "guessing gives 0.50" in measured.left_out["coin"]
    assert "coin" not in measured.to_toml("t", "")


def test_what_was_not_measured_is_not_in_the_table() -> None:
    """A tier without scores has no cell; without those of the largest there is no row."""
    measured = QualityMeasurement.of(
        {"a": {"large": Score(9, 10)}, "b": {"small": Score(9, 10)}}, TIERS
    )
    assert parse_quality(measured.to_toml("t", ""), "t").quality == {"a": {"large": 1.0}}
    assert measured.left_out == {"b": "large, the largest tier, has no score"}


def test_tiers_that_nobody_ranks_are_ranked_by_their_scores() -> None:
    """The best one is the standard."""
    measured = QualityMeasurement.of({"a": {"x": Score(9, 10), "y": Score(5, 10)}}, ())
    assert measured.tiers == ("y", "x")


def test_scores_of_any_judge_are_read(tmp_path: pathlib.Path) -> None:
    """A score for every answer, by task and tier; what else a line says is left alone."""
    path = tmp_path / "judged.jsonl"
    path.write_text(
        '{"task": "a", "tier": "x", "score": 0.5, "why": "half"}\n'
        '{"task": "a", "tier": "x", "score": 1}\n{"task": "a", "tier": "y", "score": 0}\n'
    )
    found = read_scores(path)
    assert found["a"]["x"] == Score(1.5, 2)
    assert found["a"]["y"] == Score(0.0, 1)
    path.write_text('{"task": "a", "tier": "x", "score": 7}\n')
    with pytest.raises(InputError, match=r"judged\.jsonl: line 1: score: must be 0 to 1, got 7"):
        read_scores(path)


async def test_every_tier_is_asked_every_question() -> None:
    """Answers are checked by what their question says."""
    scripts = {"big": Script(tokens=("Rome",)), "mini": Script(tokens=("Bonn",))}
    endpoint = await FakeTriton(scripts=scripts).start()
    asked = [Question("capital", f"Italy {n}?", 4, Check("exact", "Rome")) for n in range(5)]
    answered: list[str] = []
    try:
        tiers = [LiveTier(name, name, endpoint.address, "e", "d") for name in ("mini", "big")]
        found = await measure_quality(tiers, asked, on_answer=answered.append)
    finally:
        await endpoint.stop()
    assert found == {"capital": {"mini": Score(0.0, 5), "big": Score(5.0, 5)}}
    assert answered == ["mini"] * 5 + ["big"] * 5
