"""Policies are judged by the qualities that routers go by."""

from __future__ import annotations

import math

import numpy as np

from router.catalog import QualityTable
from router.profile import LatencyProfile
from router.quality import QualityEstimator, Rating
from router.types import Task
from services.trainer.jobs import MeshSpec
from services.trainer.learned_quality import learned, ratings_in
from tiercel.load_monitor.v1 import system_state_pb2 as pb

TIERS = ("small", "large")
TABLE = QualityTable(
    "q",
    "measured",
    {"hard": {"small": 0.5, "large": 1.0}, "soft": {"small": 0.7, "large": 1.0}, "none": {}},
    {},
)
SPEC = MeshSpec(
    profile=LatencyProfile("p", "assumed", {}),
    quality=TABLE,
    tasks=(Task("hard", 0.4), Task("soft", 0.4)),
    deadline_s=0.4,
    devices=(TIERS,),
)


def test_the_table_is_that_of_a_router_that_was_told_the_same() -> None:
    """What nobody rated stays, and so does what the settings do not have."""
    router = QualityEstimator(np.array([[0.5, 1.0], [0.7, 1.0]]))
    for _ in range(20):
        router.observe(0, 0, 0.9)
    ratings = {
        ("hard", "small"): Rating(20, 0.9, 0.81),
        ("hard", "huge"): Rating(20, 0.9, 0.81),
        ("odd", "small"): Rating(20, 0.9, 0.81),
    }
    found = learned(SPEC, TIERS, ratings).quality.quality
    small = found["hard"]["small"]
    assert abs(small - router.quality_KT[0, 0]) < 1e-9 < small - 0.5
    assert found == {**TABLE.quality, "hard": {"small": small, "large": 1.0}}


def test_without_ratings_the_settings_hold() -> None:
    """Nothing is made anew."""
    assert learned(SPEC, TIERS, {}) is SPEC
    assert learned(SPEC, TIERS, {("odd", "small"): Rating(1, 0.5, 0.25)}) is SPEC


def state(*told: tuple[int, float, float], learns: bool = True) -> pb.SystemState:
    """Returns a state with such ratings of a tier each, and one router."""
    found = pb.SystemState(routers=[pb.RouterLoad(learns_quality=learns)])
    task = found.task_ratings.add(task="hard")
    for number, (count, mean, square) in enumerate(told):
        tier = str(number)
        task.tiers.add(tier=tier, rating_count=count, mean=mean, mean_square=square)
    return found


def test_ratings_count_where_a_router_goes_by_them() -> None:
    """Those of a mesh in which none learns any more are of no use."""
    assert ratings_in(state((3, 0.5, 0.25))) == {("hard", "0"): Rating(3, 0.5, 0.25)}
    assert ratings_in(state((3, 0.5, 0.25), learns=False)) == {}
    assert ratings_in(pb.SystemState()) == {}


def test_what_can_be_no_rating_is_left_out() -> None:
    """Whoever the monitor is."""
    wrong = [(0, 0.5, 0.25), (2**60, 0.5, 0.25), (1, math.nan, 0.25), (1, 0.5, math.inf)]
    assert ratings_in(state(*wrong)) == {}
