"""What feedback says of the tiers, put into the fleet that requests are decided on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from router.catalog import Catalog
from router.quality import QualityEstimator
from services.common.clock import Clock
from services.common.log import Logger
from services.router_inference.records.metrics import RouterMetrics
from services.router_inference.view.fleet import FleetView

EVERY_S = 10.0
"""Time between two tables."""
LEAST_CHANGE = 0.002
"""A table in which no quality differs by so much from the one in use is not taken."""


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
        metrics: RouterMetrics,
        clock: Clock,
        log: Logger,
    ) -> None:
        """Starts with the catalog of the settings; learns nothing unless `is_on`."""
        self.version = 0
        self._catalog, self._is_on = catalog, is_on
        self._estimator = QualityEstimator(catalog.quality_KT)
        self._fleet = fleet
        self._metrics = metrics
        self._clock = clock
        self._log = log

    def report(self, task: str, tier: str, score: float) -> None:
        """Takes in what a client says of one answer, 0 to 1."""
        if not self._is_on:
            return
        catalog = self._catalog
        self._estimator.observe(catalog.task_index(task), catalog.tier_index(tier), score)
        self._metrics.quality_reports.labels(task=task, tier=tier).inc()

    def configure(self, catalog: Catalog, *, is_on: bool) -> Catalog:
        """Takes the catalog of other settings; returns it with what was learned.

        What was reported stays, unless learning is switched off.
        """
        if is_on:
            self._estimator.follow(catalog.quality_KT)
        else:
            self._estimator = QualityEstimator(catalog.quality_KT)
            self._metrics.tier_quality.clear()
            self._metrics.tier_quality_error.clear()
        self._catalog, self._is_on = catalog, is_on
        learned_KT = self._estimator.quality_KT.copy()
        is_learned = bool((learned_KT != catalog.quality_KT).any())
        self.version = self.version + 1 if is_learned else 0
        return replace(catalog, quality_KT=learned_KT)

    def put(self) -> None:
        """Puts the estimates into the fleet, from the next decision on, if they have moved."""
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

    def _show(self) -> None:
        for each in self.read():
            at = {"task": each.task, "tier": each.tier}
            self._metrics.tier_quality.labels(**at).set(each.quality)
            self._metrics.tier_quality_error.labels(**at).set(each.error)
