"""Ratings as monitors keep and hand on."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.quality import Rating
from services.load_monitor.convert_ratings import (
    kept_ratings,
    messages_of_table,
    read_kept,
    readable,
)
from services.load_monitor.model import RatingTable
from services.load_monitor.ratings import MOST_PROCESSES, MOST_RATED
from tiercel.load_monitor.v1 import system_state_pb2 as pb

TABLE: RatingTable = {
    ("copa", "small"): Rating(3, 0.5, 0.3),
    ("copa", "large"): Rating(1, 1.0, 1.0),
    ("piqa", "small"): Rating(2**53, 0.0, 0.0),
}


def test_what_is_kept_is_read_again() -> None:
    """And what of which process is counted."""
    counted = {("r1", 5): TABLE, ("r2", 2**63 - 1): {("copa", "small"): Rating(1, 0.5, 0.25)}}
    assert read_kept(kept_ratings(TABLE, counted)) == (TABLE, counted)


@pytest.mark.parametrize(
    "kept",
    [
        pb.KeptRatings(tasks=[pb.TaskRatings(task="A")]),
        pb.KeptRatings(
            tasks=[
                pb.TaskRatings(
                    task="a", tiers=[pb.TierRatings(tier="s", rating_count=1, mean=math.nan)]
                )
            ]
        ),
        pb.KeptRatings(counted=[pb.CountedRatings(router_id="r", epoch=0)]),
        pb.KeptRatings(counted=[pb.CountedRatings(router_id="r" * 129, epoch=1)]),
        pb.KeptRatings(counted=[pb.CountedRatings(epoch=1)] * (MOST_PROCESSES + 1)),
        pb.KeptRatings(
            counted=[
                pb.CountedRatings(router_id="r", epoch=1, tasks=[pb.TaskRatings(task="a")] * 65)
            ]
        ),
    ],
)
def test_what_is_wrong_with_what_is_stored_is_told(kept: pb.KeptRatings) -> None:
    """Nothing of it is taken."""
    with pytest.raises(ValueError, match=r"tasks|counted"):
        read_kept(kept.SerializeToString())


@given(st.binary(max_size=60))
def test_bytes_that_are_no_ratings_are_told(payload: bytes) -> None:
    """No other error comes of any."""
    try:
        table, _counted = read_kept(payload)
    except ValueError:
        return
    assert all(0.0 <= rating.mean <= 1.0 for rating in table.values())


def test_of_another_monitors_state_what_can_be_ratings_is_taken() -> None:
    """Task by task, and no more than are kept."""
    messages = messages_of_table(TABLE)
    messages[0].tiers[0].mean = 2.0
    assert readable(messages) == {("piqa", "small"): TABLE["piqa", "small"]}
    many = {(f"t{at // 30}", f"m{at % 30}"): Rating(1, 0.5, 0.25) for at in range(MOST_RATED + 50)}
    assert len(readable(messages_of_table(many))) == MOST_RATED
