"""Scenarios: what a mesh can carry, and what is drawn at random."""

from __future__ import annotations

import numpy as np
import pytest

from router.catalog import QualityTable
from router.profile import LatencyProfile, TierProfile
from router.types import RewardKind, Task
from trainer.simulation.scenarios import (
    TRUE_COSTS,
    Mesh,
    ScenarioError,
    evaluation_scenarios,
    steady_scenarios,
    training_scenario,
)

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


def test_routers_expect_answers_as_long_as_they_are() -> None:
    """Of every task, since all have one distribution of lengths."""
    tasks = (Task("a", 9.0, expected_output_tokens=4.0), Task("b", 9.0, expected_output_tokens=20))
    mesh = Mesh.build(profile=PROFILE, quality=QUALITY, tasks=tasks, devices=1)
    assert mesh.lengths.output_mean == 12.0
    assert [task.expected_output_tokens for task in mesh.catalog.tasks] == [12.0, 12.0]


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
        true = scenario.config.profiles[TRUE_COSTS].tiers["large"].step_s
        return len(scenario.workload) / scenario.workload.duration_s, true

    drawn = [draw(seed) for seed in range(40)]
    assert drawn[3] == draw(3)
    rates, costs = zip(*drawn, strict=True)
    assert min(rates) < mesh.large_rps < max(rates)
    assert min(costs) < PROFILE.tiers["large"].step_s < max(costs)


def test_training_meets_what_is_hard() -> None:
    """Routers with old views, lost devices, clumped traffic and soft deadlines all come up."""
    mesh = _mesh()
    drawn = [training_scenario(mesh, np.random.default_rng(seed), 200) for seed in range(80)]
    configs = [scenario.config for scenario in drawn]
    assert {config.routers for config in configs} == {1, 2, 4}
    assert all((config.staleness_s > 0.0) == (config.routers > 1) for config in configs)
    assert {event.kind for config in configs for event in config.events} == {"lost", "back", "slow"}
    assert {task.reward_kind for c in configs for task in c.catalog.tasks} == set(RewardKind)
    gaps = [np.diff(s.workload.arrival_N) for s in drawn if len(s.workload) > 50]
    assert max(float(gap.std() / gap.mean()) for gap in gaps) > 3.0


def test_one_device_is_never_lost() -> None:
    """On a mesh of one device no scenario takes it away."""
    mesh = _mesh(1)
    drawn = [training_scenario(mesh, np.random.default_rng(seed), 100) for seed in range(40)]
    drawn += evaluation_scenarios(mesh, [5], requests=100)
    assert not any(event.kind == "lost" for s in drawn for event in s.config.events)


def test_evaluation_scenarios_are_fixed() -> None:
    """They cover rates, bursts, clumped traffic, old views and losses, and never change."""
    mesh = _mesh()
    first, again = (evaluation_scenarios(mesh, [5], requests=200) for _ in range(2))
    names = [scenario.workload.name for scenario in first]
    assert names == [scenario.workload.name for scenario in again]
    assert len(set(names)) == len(names) == 19
    for kind in ("burst", "cv 4", "cv 8", "markov", "stale 2", "stale 4", "loss"):
        assert sum(name.startswith(kind) for name in names) == 2, kind
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.workload.arrival_N, two.workload.arrival_N)


def test_steady_scenarios_are_even_or_of_one_task() -> None:
    """An even mix at twelve rates, each task alone at six; costs as believed, no safety net."""
    found = steady_scenarios(_mesh(), 5, requests=200)
    shares = [np.bincount(s.workload.task_N, minlength=2) / len(s.workload) for s in found]
    assert [bool(share.max() > 0.85) for share in shares] == [False] * 12 + [True] * 12
    assert [int(share.argmax()) for share in shares[12:]] == [0] * 6 + [1] * 6
    for scenario in found:
        assert not scenario.config.safety
        assert scenario.config.profiles[TRUE_COSTS] == scenario.config.profiles[""]
