"""The quality of tiers as the mesh has learned it, for whoever judges policies by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from router.catalog import Catalog
from router.quality import QualityEstimator, RatedTier, Rating, ratings_of
from services.common.ratings import read_ratings
from services.trainer.jobs import MeshSpec
from tiercel.load_monitor.v1.system_state_pb2 import SystemState


def ratings_in(state: SystemState) -> dict[RatedTier, Rating]:
    """Returns what clients said of answers everywhere; nothing where no router goes by it."""
    if not any(router.learns_quality for router in state.routers):
        return {}
    return read_ratings(state.task_ratings)


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
    tasks = [task.name for task in spec.tasks]
    heard = ratings_of(ratings, tasks, tiers)
    if not heard.answers.any():
        return spec
    estimator = QualityEstimator(catalog.quality_KT)
    estimator.hear(heard)
    rows = dict(zip(tasks, estimator.quality_KT.tolist(), strict=True))
    quality = {
        task: {**row, **dict(zip(tiers, rows[task], strict=True))} if task in rows else row
        for task, row in spec.quality.quality.items()
    }
    return replace(spec, quality=replace(spec.quality, quality=quality))
