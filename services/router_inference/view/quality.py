"""What feedback says of the tiers, put into the fleet that requests are decided on.

What clients tell this router, and all its workers, goes to the load monitor with its reports. What
comes back is what the whole mesh was told: to that, this router adds only what of its own is not in
it yet. Without a monitor it goes by its own alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from router.catalog import Catalog
from router.quality import (
    QualityEstimator,
    RatedTier,
    Rating,
    Ratings,
    joined,
    no_ratings,
    ratings_of,
    since,
)
from services.common.clock import Clock
from services.common.log import Logger
from services.router_inference.records.metrics import RouterMetrics
from services.router_inference.records.router_counts import RouterCounts
from services.router_inference.view.client_shares import ClientShares
from services.router_inference.view.fleet import FleetView
from services.router_inference.view.seen import SeenRatings

EVERY_S = 10.0
"""Time between two tables."""
LEAST_CHANGE = 0.002
"""A table in which no quality differs by so much from the one in use is not taken."""
MOST_TOLD = 256
"""Tiers of tasks of which the monitor is told; what is said of more stays in this router."""


@dataclass(frozen=True, slots=True)
class TierQuality:
    """Quality of a tier on a task.

    Attributes:
        task: the task.
        tier: the tier.
        quality: that decisions use.
        settings_quality: by the table of the settings.
        error: half the width of the 95 % interval of what reports say by now.
        reports: how many there were.
    """

    task: str
    tier: str
    quality: float
    settings_quality: float
    error: float
    reports: int


class LearnedQuality:
    """Takes in what clients say of answers; every while the fleet gets the table that follows.

    Attributes:
        version: number of the table in use, 0 for that of the settings.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        is_on: bool,
        fleet: FleetView,
        counts: RouterCounts,
        metrics: RouterMetrics,
        clock: Clock,
        log: Logger,
    ) -> None:
        """Starts with the catalog of the settings; learns nothing unless `is_on`."""
        self.version = 0
        self._catalog, self._is_on = catalog, is_on
        self._estimator = QualityEstimator(catalog.quality_KT)
        self._counts = counts
        # What is known of the first tasks, and what of the own part is in it.
        self._known = self._counted = no_ratings(0, len(catalog.tiers))
        self._seen: SeenRatings | None = None
        self._is_told = False
        self._fleet = fleet
        self._metrics = metrics
        self._clock = clock
        self._shares = ClientShares(clock.monotonic_s())
        self._log = log

    def report(self, client: str, task: str, tier: str, score: float) -> None:
        """Takes in what a client says of one answer, 0 to 1; not where it says more than others."""
        if not self._is_on:
            return
        catalog = self._catalog
        at = catalog.task_index(task), catalog.tier_index(tier)
        if not self._shares.admit(at, client, self._clock.monotonic_s()):
            return
        self._counts.rate(*at, score)
        self._estimator.observe(*at, score)
        self._metrics.quality_reports.labels(task=task, tier=tier).inc()

    @property
    def is_on(self) -> bool:
        """Whether it learns."""
        return self._is_on

    def told(self) -> Mapping[RatedTier, Rating]:
        """Returns what clients said to this router since it started, by task and tier."""
        if not self._is_on:
            return {}
        ratings, catalog = self._counts.ratings(), self._catalog
        return {
            (catalog.tasks[k].name, catalog.tiers[t]): Rating(
                round(ratings.answers[k, t]), float(ratings.mean[k, t]), float(ratings.square[k, t])
            )
            for k, t in np.argwhere(ratings.answers)[:MOST_TOLD].tolist()
        }

    def take_in(self, seen: SeenRatings) -> None:
        """Takes what clients said everywhere in place of what was known.

        A state that counts none of this router's reports, although there are some, is of a monitor
        that has not heard of it yet: it would have them counted twice, or not at all.
        """
        self._seen = seen
        if self._is_on and self._use(seen) and not self._is_told:
            self._is_told = True
            self.put()

    def configure(self, catalog: Catalog, *, is_on: bool) -> Catalog:
        """Takes the catalog of other settings; returns it with what was learned.

        What was reported stays, unless learning is switched off.
        """
        if is_on:
            self._estimator.follow(catalog.quality_KT)
        else:
            self._estimator = QualityEstimator(catalog.quality_KT)
            self._counted = self._counts.ratings()
            self._known = no_ratings(*self._counted.answers.shape)
            self._is_told = False
            self._metrics.tier_quality.clear()
            self._metrics.tier_quality_error.clear()
        was_on = self._is_on
        self._catalog, self._is_on = catalog, is_on
        if is_on and not was_on and self._seen is not None and self._use(self._seen):
            self._add_own()
        learned_KT = self._estimator.quality_KT.copy()
        is_learned = bool((learned_KT != catalog.quality_KT).any())
        self.version = self.version + 1 if is_learned else 0
        return replace(catalog, quality_KT=learned_KT)

    def put(self) -> None:
        """Puts the estimates into the fleet, from the next decision on, if they have moved."""
        if self._is_on:
            self._add_own()
        learned_KT, used_KT = self._estimator.quality_KT, self._fleet.catalog.quality_KT
        if not self._is_on or np.abs(learned_KT - used_KT).max(initial=0.0) < LEAST_CHANGE:
            return
        self.version += 1
        self._fleet.take_quality(learned_KT.copy())
        self._log.info("quality_table", version=self.version)

    async def run(self) -> None:
        """Does so for ever."""
        while True:
            await self._clock.sleep(EVERY_S)
            self.put()
            self._show()

    def read(self) -> list[TierQuality]:
        """Returns the tiers of which there were reports."""
        estimator, catalog = self._estimator, self._catalog
        error_KT, used_KT = estimator.error_KT(), self._fleet.catalog.quality_KT
        return [
            TierQuality(
                catalog.tasks[k].name,
                catalog.tiers[t],
                float(used_KT[k, t]),
                float(estimator.table_KT[k, t]),
                float(error_KT[k, t]),
                int(estimator.report_count_KT[k, t]),
            )
            for k, t in np.argwhere(estimator.report_count_KT).tolist()
        ]

    def _use(self, seen: SeenRatings) -> bool:
        """Goes on from what the mesh knows, if this router's part of it is known."""
        if not seen.counts_own and self._counts.ratings().answers.any():
            return False
        # What the monitor does not know, or has no room for, it was told and did not count.
        counted = {tier: each for tier, each in seen.own.items() if tier in seen.mesh}
        self._known, self._counted = self._table(seen.mesh), self._table(counted)
        return True

    def _add_own(self) -> None:
        """Adds to what is known what clients have said to this router, and its workers, since."""
        own = self._counts.ratings()
        shape = own.answers.shape
        self._known = joined(_grown(self._known, shape), since(_grown(self._counted, shape), own))
        self._counted = own
        self._estimator.hear(self._known)

    def _table(self, cells: Mapping[RatedTier, Rating]) -> Ratings:
        count = len(self._counts.ratings().answers)
        tasks = [task.name for task in self._catalog.tasks[:count]]
        return ratings_of(cells, tasks, self._catalog.tiers)

    def _show(self) -> None:
        for each in self.read():
            at = {"task": each.task, "tier": each.tier}
            self._metrics.tier_quality.labels(**at).set(each.quality)
            self._metrics.tier_quality_error.labels(**at).set(each.error)


def _grown(ratings: Ratings, shape: tuple[int, ...]) -> Ratings:
    """Returns ratings with rows for tasks that have come since."""
    added = shape[0] - len(ratings.answers)
    return Ratings(*(np.pad(each, ((0, added), (0, 0))) for each in ratings)) if added else ratings
