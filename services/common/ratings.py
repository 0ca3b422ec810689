"""What clients said of answers, as messages of those that are trusted to have checked it."""

from __future__ import annotations

from collections.abc import Iterable

from router.quality import RatedTier, Rating
from services.common.checks import MAX_COUNT
from tiercel.load_monitor.v1.system_state_pb2 import TaskRatings, TierRatings


def read_ratings(tasks: Iterable[TaskRatings]) -> dict[RatedTier, Rating]:
    """Returns ratings by task and tier; what can be none is left out, NaN lies nowhere."""
    return {
        (task.task, each.tier): Rating(each.rating_count, each.mean, _square(each))
        for task in tasks
        for each in task.tiers
        if 0 < each.rating_count <= MAX_COUNT
        and 0.0 <= each.mean <= 1.0
        and 0.0 <= each.mean_square <= 1.0
    }


def _square(told: TierRatings) -> float:
    """Returns a mean of squares that can go with the mean: of another no error can be told."""
    return min(max(told.mean_square, told.mean * told.mean), told.mean)
