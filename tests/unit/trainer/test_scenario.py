"""Scenarios: what a mesh can carry, and what is drawn at random."""

from __future__ import annotations

import numpy as np
import pytest

from router.catalog import QualityTable
from router.profile import LatencyProfile, TierProfile
from router.types import Task
from trainer.scenario import Mesh, ScenarioError, evaluation_scenarios, training_scenario

PROFILE = LatencyProfile(
    "tiny",
    "assumed",
    {
        "small": TierProfile(0.001, 1e-4, 1e-6, max_batch=8),
        "large": TierProfile(0.008, 1e-3, 1e-5, max_batch=8),
    },
)
TASKS = (Task("a", 9.0), Task("b", 9.0))
QUALITY = QualityTable(
    "q", "assumed", {"a": {"small": 0.5, "large": 1.0}, "b": {"small": 0.7, "large": 1.0}}, {}
)


def _mesh(devices: object = 2, deadline_s: float = 0.3) -> Mesh:
    return Mesh.build(
        profile=PROFILE,
        quality=QUALITY,
        tasks=TASKS,
        deadline_s=deadline_s,
        devices=devices,  # type: ignore[arg-type]
    )


def test_capacities_follow_the_profile() -> None:
    """Twice the devices carry twice the load, and the smaller tier carries more."""
    one, two = _mesh(1), _mesh(2)
    assert two.large_rps == pytest.approx(2 * one.large_rps)
    assert one.small_rps > 5 * one.large_rps
    # 14 prompt tokens and 8 output tokens, a step shared by 8: 8 (0.001 + 0.008 / 8) + prompt.
    assert one.large_rps == pytest.approx(1 / (8 * 0.002 + 14.6e-5), rel=0.01)
    assert one.rates(3)[0] < one.large_rps < one.rates(3)[-1] < one.small_rps


def test_placement_by_device() -> None:
    """Devices may hold different tiers; capacity counts only the devices that hold the tier."""
    mesh = _mesh([["small"], ["large"], ["large"]])
    assert mesh.fleet.candidate_count == 3
    assert mesh.large_rps == pytest.approx(2 * _mesh(1).large_rps)


@pytest.mark.parametrize(
    ("devices", "deadline_s", "text"),
    [
        (0, 0.3, "devices"),
        ([], 0.3, "devices"),
        ([["small"], []], 0.3, "devices"),
        ([["huge"]], 0.3, "huge"),
        (1, 0.0, "deadline_s"),
        (1, float("nan"), "deadline_s"),
    ],
)
def test_bad_mesh_is_named(devices: object, deadline_s: float, text: str) -> None:
    """What is wrong is said."""
    with pytest.raises(ScenarioError, match=text):
        _mesh(devices, deadline_s)


def test_training_scenarios_vary_and_repeat_by_seed() -> None:
    """The same seed gives the same scenario, another one other rates and other true costs."""
    mesh = _mesh()

    def draw(seed: int) -> tuple[float, float]:
        scenario = training_scenario(mesh, np.random.default_rng(seed), 500)
        true = scenario.config.profiles["nominal"].tiers["large"].step_s
        return len(scenario.workload) / scenario.workload.duration_s, true

    drawn = [draw(seed) for seed in range(40)]
    assert drawn[3] == draw(3)
    rates, costs = zip(*drawn, strict=True)
    assert min(rates) < mesh.large_rps < max(rates)
    assert min(costs) < PROFILE.tiers["large"].step_s < max(costs)


def test_evaluation_scenarios_are_fixed() -> None:
    """They cover the range of rates and bursts, and never change."""
    mesh = _mesh()
    first, again = (evaluation_scenarios(mesh, [5], requests=200) for _ in range(2))
    assert [s.workload.name for s in first] == [s.workload.name for s in again]
    assert len(first) == 7
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.workload.arrival_N, two.workload.arrival_N)
