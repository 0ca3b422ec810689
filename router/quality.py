"""The quality of tiers as clients found their answers, drawn to the table of the settings.

Qualities are standardised: score / score of the largest tier. What a client reports is the score of
one answer, so the estimate of a tier is the mean of its reports over that of the largest tier's,
which itself stays as the table has it. Each mean counts the table's value as some reports more.

What is reported is claimed, not seen. One report moves an estimate by at most `MOST_STEP`, and all
together never take it further than `RANGE` from the table. The table drifts with the traffic:
only about the last `MEMORY` reports count.

Processes that hear of the same tiers add up what they heard (`Ratings`): each tells the means of
all its reports, of which only what is new since it told last is `joined` to those of the mesh.

Shape letters: K tasks, T tiers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

PRIOR: Final = 50.0
"""For so many reports the table counts."""
MEMORY: Final = 500.0
RANGE: Final = 0.2
MOST_STEP: Final = 0.02
_PRIOR_VARIANCE: Final = 0.25
"""Of the score of one answer of which nothing is known: the largest that one of 0 to 1 can have."""
_HALF_WIDTH: Final = 1.96


class Rating(NamedTuple):
    """What clients said of the answers of a tier on a task, 0 to 1 each.

    Attributes:
        answers: how many were rated.
        mean: mean of what was said.
        square: mean of its squares.
    """

    answers: int
    mean: float
    square: float


class Ratings(NamedTuple):
    """The same of several, as arrays of one shape, float64.

    Attributes:
        answers: how many were rated.
        mean: their mean.
        square: the mean of their squares.
    """

    answers: NDArray[np.float64]
    mean: NDArray[np.float64]
    square: NDArray[np.float64]


RatedTier = tuple[str, str]
"""Task and tier."""


def ratings_of(
    cells: Mapping[RatedTier, Rating], tasks: Sequence[str], tiers: Sequence[str]
) -> Ratings:
    """Returns ratings by name as arrays, [K, T]; those of other tasks and tiers are left."""
    found = no_ratings(len(tasks), len(tiers))
    task_at = {task: k for k, task in enumerate(tasks)}
    tier_at = {tier: t for t, tier in enumerate(tiers)}
    for (task, tier), rating in cells.items():
        if task in task_at and tier in tier_at:
            for array, value in zip(found, rating, strict=True):
                array[task_at[task], tier_at[tier]] = value
    return found


def no_ratings(*shape: int) -> Ratings:
    """Returns that nobody has said anything."""
    return Ratings(*np.zeros((3, *shape)))


def joined(before: Ratings, added: Ratings) -> Ratings:
    """Returns the means over about the last `MEMORY` reports once some came after others.

    One by one they would give the same, but for the order among those that were added. More than
    `MEMORY` at once count as so many: they do not take all from those before.
    """
    plain = np.clip(MEMORY - before.answers, 0.0, added.answers)
    count = before.answers + added.answers
    # The first ones have equal shares; from `MEMORY` on each takes one part in so many.
    kept = before.answers / np.maximum(before.answers + plain, 1.0)
    kept = kept * (1.0 - 1.0 / MEMORY) ** (np.minimum(added.answers, MEMORY) - plain)
    mean = kept * before.mean + (1.0 - kept) * added.mean
    square = kept * before.square + (1.0 - kept) * added.square
    return Ratings(count, mean, square)


def since(before: Ratings, now: Ratings) -> Ratings:
    """Returns what was added to plain means, which forget nothing; none where there are fewer."""
    count = np.maximum(now.answers - before.answers, 0.0)
    share = 1.0 / np.maximum(count, 1.0)
    mean = share * (now.answers * now.mean - before.answers * before.mean)
    square = share * (now.answers * now.square - before.answers * before.square)
    # Whatever was told: scores lie within 0 and 1, and so do their squares, below them.
    mean = np.where(count > 0.0, np.clip(mean, 0.0, 1.0), 0.0)
    return Ratings(count, mean, np.clip(square, mean * mean, mean))


class QualityEstimator:
    """Estimates the quality of every tier on every task.

    Attributes:
        quality_KT: the estimates, changed in place.
        report_count_KT: reports so far, int64.
    """

    def __init__(self, table_KT: NDArray[np.float64]) -> None:
        """Starts at a table, float64 [K, T], tiers from low to high."""
        self.table_KT = table_KT
        self.quality_KT = table_KT.copy()
        self.report_count_KT = np.zeros(table_KT.shape, np.int64)
        self._mean_KT, self._square_KT = np.zeros((2, *table_KT.shape))

    def follow(self, table_KT: NDArray[np.float64]) -> None:
        """Takes another table, whose tasks begin with those of the one before.

        What was reported stays.
        """
        added = len(table_KT) - len(self.table_KT)
        self.table_KT = table_KT
        grown = (
            np.pad(each, ((0, added), (0, 0)))
            for each in (self.report_count_KT, self._mean_KT, self._square_KT)
        )
        self.report_count_KT, self._mean_KT, self._square_KT = grown
        self.quality_KT = np.array([self._found(task) for task in range(len(table_KT))])

    def observe(self, task: int, tier: int, score: float) -> None:
        """Learns from what a client says of one answer.

        Args:
            task: its index.
            tier: index of the tier that answered.
            score: 0 to 1.
        """
        at = task, tier
        self.report_count_KT[at] += 1
        share = 1.0 / min(self.report_count_KT[at], MEMORY)
        self._mean_KT[at] += share * (score - self._mean_KT[at])
        self._square_KT[at] += share * (score * score - self._square_KT[at])
        change_T = self._found(task) - self.quality_KT[task]
        self.quality_KT[task] += np.clip(change_T, -MOST_STEP, MOST_STEP)

    def hear(self, ratings: Ratings) -> None:
        """Takes what was said of the first tasks, everywhere, in place of what it knew of them.

        Estimates move as if what is new had come one by one.

        Args:
            ratings: Of each tier on each of the tasks; means over about the last `MEMORY`.
        """
        rows = slice(len(ratings.answers))
        count_KT = np.rint(ratings.answers).astype(np.int64)
        new_K = np.maximum(count_KT - self.report_count_KT[rows], 0).sum(axis=1)
        self.report_count_KT[rows] = count_KT
        self._mean_KT[rows], self._square_KT[rows] = ratings.mean, ratings.square
        for task in np.flatnonzero(new_K).tolist():
            most = MOST_STEP * float(new_K[task])
            change_T = self._found(task) - self.quality_KT[task]
            self.quality_KT[task] += np.clip(change_T, -most, most)

    def error_KT(self) -> NDArray[np.float64]:
        """Returns half the width of the estimates' 95 % intervals; 0 for the largest tier."""
        count_KT = np.minimum(self.report_count_KT, MEMORY)
        spread_KT = self._square_KT - self._mean_KT * self._mean_KT
        variance_KT = (PRIOR * _PRIOR_VARIANCE + count_KT * spread_KT) / (PRIOR + count_KT)
        share_KT = variance_KT / (PRIOR + count_KT) / np.maximum(self._score_KT(), 1e-3) ** 2
        error_KT = _HALF_WIDTH * self.quality_KT * np.sqrt(share_KT + share_KT[:, -1:])
        error_KT[:, -1] = 0.0
        found: NDArray[np.float64] = np.minimum(error_KT, 1.0)
        return found

    def _score_KT(self) -> NDArray[np.float64]:
        count_KT = np.minimum(self.report_count_KT, MEMORY)
        told_KT = PRIOR * self.table_KT + count_KT * self._mean_KT
        found: NDArray[np.float64] = told_KT / (PRIOR + count_KT)
        return found

    def _found(self, task: int) -> NDArray[np.float64]:
        """Returns what the reports say of a task by now, float64 [T]."""
        table_T: NDArray[np.float64] = self.table_KT[task]
        score_T = self._score_KT()[task]
        if score_T[-1] <= 0.0:
            return table_T.copy()
        found_T = score_T * (table_T[-1] / score_T[-1])
        low_T, high_T = np.maximum(table_T - RANGE, 0.0), np.minimum(table_T + RANGE, 1.0)
        found: NDArray[np.float64] = np.clip(found_T, low_T, high_T)
        return found
