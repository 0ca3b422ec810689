"""Measured quality: intervals and files."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.catalog import parse_quality
from services.calibrate.quality import QualityMeasurement, Score


@settings(deadline=None)  # the first example loads scipy
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
    measured = QualityMeasurement(
        ("small", "large"),
        {
            "sort": {"small": Score(40, 100), "large": Score(80, 100)},
            "recall": {"small": Score(90, 100), "large": Score(80, 100)},
            "none": {"small": Score(5, 100), "large": Score(0, 100)},
        },
    )
    table = parse_quality(measured.to_toml("reference", "Test."), "test")
    assert table.quality["sort"] == {"small": 0.5, "large": 1.0}
    assert table.quality["recall"] == {"small": 1.0, "large": 1.0}
    assert table.raw["sort"]["large"] == 0.8
    assert table.source == "measured"
    assert measured.to_json()["sort"]["small"]["examples"] == 100
