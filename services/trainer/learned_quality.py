"""The quality of tiers as the mesh has learned it, for whoever judges policies by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from router.catalog import Catalog
from router.quality import QualityEstimator, Rating, no_ratings
from services.trainer.jobs import MeshSpec
from tiercel.load_monitor.v1.system_state_pb2 import SystemState, TaskRatings

RatedTier = tuple[str, str]
"""Task and tier."""
_MOST_RATINGS = 2**53


def ratings_of(state: SystemState) -> dict[RatedTier, Rating]:
    """Returns what clients said of answers everywhere; nothing where no router goes by it."""
    if not any(router.learns_quality for router in state.routers):
        return {}
    return dict(_readable(state.task_ratings))


def learned(
    spec: MeshSpec, tiers: tuple[str, ...], ratings: Mapping[RatedTier, Rating]
) -> MeshSpec:
    """Returns a mesh with the qualities that a router goes by which starts now.

    Args:
        spec: The mesh of the settings.
        tiers: Its tiers, from low to high.
        ratings: What clients said of answers; what the settings do not have is left.
    """
    catalog = Catalog.build(tiers, spec.tasks, spec.quality)
    task_at = {task.name: k for k, task in enumerate(spec.tasks)}
    tier_at = {tier: t for t, tier in enumerate(tiers)}
    heard = no_ratings(*catalog.quality_KT.shape)
    for (task, tier), rating in ratings.items():
        if task in task_at and tier in tier_at:
            for array, value in zip(heard, rating, strict=True):
                array[task_at[task], tier_at[tier]] = value
    if not heard.answers.any():
        return spec
    estimator = QualityEstimator(catalog.quality_KT)
    estimator.hear(heard)
    rows = dict(zip(task_at, estimator.quality_KT.tolist(), strict=True))
    quality = {
        task: {**row, **dict(zip(tiers, rows[task], strict=True))} if task in rows else row
        for task, row in spec.quality.quality.items()
    }
    return replace(spec, quality=replace(spec.quality, quality=quality))


def _readable(tasks: Iterable[TaskRatings]) -> Iterable[tuple[RatedTier, Rating]]:
    """Yields what can be ratings; NaN lies nowhere."""
    for task in tasks:
        for each in task.tiers:
            is_one = 0.0 <= each.mean <= 1.0 and 0.0 <= each.mean_square <= 1.0
            if is_one and 0 < each.rating_count <= _MOST_RATINGS:
                rating = Rating(each.rating_count, each.mean, each.mean_square)
                yield (task.task, each.tier), rating
