"""Small fleets for the tests of the router's decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from router.catalog import Catalog, QualityTable
from router.fleet import EndpointSpec, Fleet, FleetArrays, build_fleet
from router.ledger import LoadArrays
from router.policies import scores
from router.policies.scores import Query
from router.profile import LatencyProfile, TierProfile
from router.types import Task

if TYPE_CHECKING:
    from router.policies.base import ScoreKernel

TIERS = ("small", "medium", "large")
QUERY = Query(
    task=0,
    slack_s=0.4,
    prompt_tokens=100.0,
    output_tokens=8.0,
    event_tokens=8.0,
    soft_decay_s=0.0,
    mean_prompt_tokens=0.0,
    rate_short_rps=10.0,
    rate_long_rps=10.0,
    state_age_s=0.0,
    draw=0.0,
)
"""An easy request in steady traffic."""


def quality() -> QualityTable:
    """Returns the quality of three tiers on an easy and a hard task."""
    return QualityTable(
        "test",
        "assumed",
        {
            "easy": {"small": 0.8, "medium": 0.95, "large": 1.0},
            "hard": {"small": 0.4, "medium": 0.8, "large": 1.0},
        },
        {},
    )


def catalog() -> Catalog:
    """Returns three tiers and two tasks."""
    return Catalog.build(TIERS, (Task("easy", 0.4), Task("hard", 0.4)), quality())


def profile() -> LatencyProfile:
    """Returns a profile of three tiers in the proportions of a real ladder."""
    return LatencyProfile(
        "test",
        "assumed",
        {
            "small": TierProfile(0.0014, 0.00001, 0.0000045),
            "medium": TierProfile(0.0039, 0.00003, 0.000024),
            "large": TierProfile(0.0105, 0.00008, 0.000084),
        },
    )


def fleet(device_count: int = 2, speed: float = 1.0) -> Fleet:
    """Returns endpoints with every tier, one device each."""
    endpoints = [
        EndpointSpec(f"e{i}", f"127.0.0.1:{9000 + i}", f"d{i}", {t: t for t in TIERS}, speed=speed)
        for i in range(device_count)
    ]
    return build_fleet(catalog(), endpoints, {"": profile()})


def random_load(rng: np.random.Generator, candidate_count: int, scale: float) -> LoadArrays:
    """Returns a random consistent load of up to `scale` requests per candidate."""
    in_flight_C = np.floor(rng.random(candidate_count) * scale)
    waiting_C = np.floor(in_flight_C * rng.random(candidate_count))
    return LoadArrays(
        in_flight_C,
        waiting_C * rng.uniform(10, 300, candidate_count),
        in_flight_C * rng.uniform(1, 16, candidate_count),
    )


def compute_scores(
    kernel: ScoreKernel,
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Returns a kernel's scores as an array [C]."""
    s = scores.scratch(len(allowed_C))
    scores.predict(fleet, load, query, s)
    kernel(fleet, load, allowed_C, query, params_P, s)
    return s.score_C
