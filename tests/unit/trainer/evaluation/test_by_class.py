"""Policies beside each other, priority class by priority class."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from services.trainer.jobs import MeshSpec, SimulationJob
from tests.unit.trainer.simulation.settings import config, traffic
from tests.unit.trainer.simulation.test_scenarios import PROFILE, QUALITY, TASKS
from trainer.evaluation import by_class
from trainer.evaluation.by_class import class_scores, gaps
from trainer.evaluation.statistics import interval
from trainer.simulation.simulate import make_world


def result(place: list[int] | None, reward: list[float]) -> Any:
    """A run whose requests had these classes and earned so much; in time if they earned."""
    place_N = None if place is None else np.array(place, np.int8)

    class Workload:
        """As many requests."""

        def __init__(self) -> None:
            self.place_N = place_N

        def __len__(self) -> int:
            return len(reward)

    reward_N = np.array(reward)
    return SimpleNamespace(workload=Workload(), reward_N=reward_N, on_time_N=reward_N > 0.0)


def test_scores_are_of_each_class_in_each_scenario() -> None:
    """A class without requests in one scenario has none there; one without any is left out."""
    found = class_scores([result([-1, 0, 0], [1.0, 0.5, 0.0]), result([0, 0], [0.8, 0.8])])
    assert found.keys() == {"high", "normal"}
    assert found["normal"]["performance"].tolist() == [0.25, 0.8]
    assert found["normal"]["availability"].tolist() == [0.5, 1.0]
    assert found["high"]["performance"][0] == 1.0
    assert math.isnan(found["high"]["performance"][1])
    assert class_scores([result(None, [1.0])]) == {}


def test_gaps_are_paired_scenario_by_scenario() -> None:
    """What a scenario does to all is in no interval; what one of them lacks is left out."""
    ours = {"low": {"performance": np.array([0.2, 0.6, 0.9, np.nan]),
                    "availability": np.ones(4)}}  # fmt: skip
    others = {"low": {"performance": np.array([0.3, 0.7, 0.9, 0.5]),
                      "availability": np.full(4, 0.75)}}  # fmt: skip
    performance, availability = gaps(ours, others)
    assert (performance.priority, performance.score) == ("low", "performance")
    assert performance.gap == pytest.approx(-0.2 / 3)
    assert performance.half == pytest.approx(interval([-0.1, -0.1, 0.0]).half)
    assert (availability.gap, availability.half) == (0.25, 0.0)


def test_one_scenario_alone_shows_no_policy_to_be_worse() -> None:
    """A class of which one scenario alone had a request: the difference may be chance."""
    ours = {"high": {name: np.array([np.nan, 0.4]) for name in ("performance", "availability")}}
    others = {"high": {name: np.array([np.nan, 1.0]) for name in ("performance", "availability")}}
    assert not any(gap.is_worse(0.005) for gap in gaps(ours, others))


def test_classes_are_drawn_from_a_stream_of_their_own() -> None:
    """The simulator's dice have others."""
    clock = make_world(config(1), traffic(5.0, 1.0), 7).clock[0]
    own = np.random.default_rng([7, by_class._STREAM]).integers(2**63, dtype=np.uint64)
    assert own not in (clock["random"], clock["device_random"])


@pytest.mark.parametrize(
    ("gap", "half", "is_worse"),
    [(-0.02, 0.01, True), (-0.02, 0.03, False), (-0.004, 0.001, False), (0.01, 0.0, False)],
)
def test_worse_is_beyond_the_interval_and_the_margin(
    gap: float, half: float, is_worse: bool
) -> None:
    """Either alone is not enough."""
    (found,) = [
        each
        for each in gaps(
            {"low": {"performance": np.array([0.5 + gap]), "availability": np.ones(1)}},
            {"low": {"performance": np.array([0.5]), "availability": np.ones(1)}},
        )
        if each.score == "performance"
    ]
    assert type(found)("low", "x", found.value, found.reference, half).is_worse(0.005) is is_worse


@pytest.mark.timeout(900)  # the first run on a machine compiles
def test_a_policy_that_takes_from_one_class_is_seen_in_the_simulator() -> None:
    """Price gives less to the low class where devices are short, beside itself no less."""
    spec = MeshSpec(
        profile=PROFILE,
        quality=QUALITY,
        tasks=tuple(replace(task, default_deadline_s=0.3) for task in TASKS),
        deadline_s=0.3,
        devices=(("small", "large"),),
    )
    mix = {"high": 0.3, "normal": 0.4, "low": 0.3}
    policies = [("price", None), ("price", None), ("static-large", None)]
    means, (same, large) = SimulationJob().evaluate_by_class(spec, policies, [900_001], mix)
    assert means[0] == means[1]
    assert {each.gap for each in same} == {each.half for each in same} == {0.0}
    performance = {each.priority: each.value for each in same if each.score == "performance"}
    assert performance["high"] > performance["low"] + 0.02
    assert all(each.gap > 0.0 for each in large if each.score == "availability")
    assert not any(each.is_worse(0.005) for each in large)
