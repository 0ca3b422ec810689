"""What clients said of answers: routers tell what they heard, the monitor keeps it for the mesh.

A router process tells the plain means of all it has heard. Only what is new since it told last is
joined to the mesh's, so a router that leaves takes nothing with it, and one that is heard twice, or
through two monitors, counts once. What of a process is counted is known for as long as it may still
report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from router.quality import MEMORY, RatedTier, Rating, Ratings, joined, since
from services.common.checks import MAX_COUNT
from services.common.clock import Clock
from services.load_monitor.model import NO_RATINGS, RatingTable, RouterReport

MOST_RATED = 1_024
"""Tiers of tasks of which ratings are kept; what is said of more is left out."""
MOST_PROCESSES = 2_000
"""Router processes of which it is known what is counted."""
GONE_S = 3_600.0
"""A process that has not told anything for so long is gone."""


Process = tuple[str, int]
"""Name and epoch of a router."""
_NOTHING = Rating(0, 0.0, 0.0)


@dataclass(slots=True)
class _Counted:
    """What of a router process is counted.

    Attributes:
        table: That.
        told: What it told last, of which nothing is left to count.
        heard_s: When it told, monotonic seconds.
    """

    table: RatingTable
    told: RatingTable
    heard_s: float


def anything(task: str, tier: str) -> bool:
    """Takes every tier and task for one of the mesh."""
    return True


class MeshRatings:
    """The mesh's ratings.

    Args:
        clock: Tells which processes are gone.
        is_known: Returns whether a task and a tier are the mesh's.
    """

    def __init__(self, *, clock: Clock, is_known: Callable[[str, str], bool] = anything) -> None:
        self._clock = clock
        self._is_known = is_known
        self._counted: dict[Process, _Counted] = {}
        self.table: RatingTable = NO_RATINGS
        """Means over about the last 500 answers; another object whenever they change."""

    def take(self, report: RouterReport) -> None:
        """Adds what a router has heard since it told last."""
        told, process = report.tasks.table, (report.router_id, report.epoch)
        if not told:
            return
        now_s = self._clock.monotonic_s()
        counted = self._counted.setdefault(process, _Counted(NO_RATINGS, NO_RATINGS, now_s))
        counted.heard_s = now_s
        if counted.told is told:
            return
        before = counted.table
        # One that has fewer than are counted came late, through another monitor.
        new = [
            tier
            for tier, rating in told.items()
            if rating.answers > before.get(tier, _NOTHING).answers and self._has_room(tier)
        ]
        if new:
            self._join(new, before, told)
        taken = {tier: told[tier] for tier in new if tier in self.table}
        counted.table, counted.told = {**before, **taken}, told
        if len(self._counted) > MOST_PROCESSES:
            del self._counted[min(self._counted, key=lambda each: self._counted[each].heard_s)]

    def adopt(self, table: RatingTable, counted: Mapping[Process, RatingTable]) -> None:
        """Takes what another monitor kept in place of what is known here."""
        now_s = self._clock.monotonic_s()
        self.table = {tier: each for tier, each in table.items() if self._is_known(*tier)}
        self._counted = {
            process: _Counted(each, NO_RATINGS, now_s) for process, each in counted.items()
        }

    def counted(self) -> dict[Process, RatingTable]:
        """Returns what of which process is counted, of those that may still report."""
        oldest_s = self._clock.monotonic_s() - GONE_S
        self._counted = {p: each for p, each in self._counted.items() if each.heard_s >= oldest_s}
        return {process: each.table for process, each in self._counted.items()}

    def _has_room(self, tier: RatedTier) -> bool:
        return tier in self.table or (len(self.table) < MOST_RATED and self._is_known(*tier))

    def _join(self, tiers: list[RatedTier], before: RatingTable, now: RatingTable) -> None:
        added = since(_arrays(tiers, before), _arrays(tiers, now))
        found = joined(_arrays(tiers, self.table), added)
        rows = zip(*(array.tolist() for array in found), strict=True)
        fresh = {
            tier: Rating(_count(answers), mean, square)
            for tier, (answers, mean, square) in zip(tiers, rows, strict=True)
        }
        self.table = dict(list({**self.table, **fresh}.items())[:MOST_RATED])


def _count(answers: float) -> int:
    """Returns how many were rated, as a message can tell it.

    Routers learn from how it grows. One that has been claimed to be the largest there is could not
    grow, so it begins anew, where as many are counted as means are over.
    """
    return round(answers if answers < MAX_COUNT else MEMORY)


def _arrays(tiers: Iterable[RatedTier], table: RatingTable) -> Ratings:
    rows = np.array([table.get(tier, _NOTHING) for tier in tiers], np.float64)
    return Ratings(*rows.T)
