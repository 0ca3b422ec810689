"""Settings in which policies are compared: whose deadlines, tiers and devices they have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from router.catalog import Catalog, parse_quality
from router.types import Task
from tests.unit.router import fleets
from trainer.simulation.scenarios import Mesh, training_scenario
from trainer.simulation.setting import OwnMesh
from trainer.simulation.workload import Lengths

QUALITY = parse_quality(
    'name = "q"\n[quality.chat]\nsmall = 0.5\nmedium = 0.8\nlarge = 1.0\n'
    "[quality.tags]\nsmall = 0.9\nmedium = 1.0\nlarge = 1.0\n",
    "q",
)
TASKS = (Task("chat", 2.0), Task("tags", 0.5))
OWN = OwnMesh(
    "ours",
    Catalog.build(fleets.TIERS, TASKS, QUALITY),
    QUALITY,
    fleets.profile(),
    (fleets.TIERS, fleets.TIERS[:1]),
    Lengths(),
)


def test_every_request_has_its_tasks_deadline() -> None:
    """What a setting calls its deadline is only the typical one."""
    setting = OWN.setting()
    workload = setting.workload(np.arange(100) / 10.0, 10.0, np.random.default_rng(0))
    assert {float(each) for each in workload.slack_N[workload.task_N == 0]} == {2.0}
    assert {float(each) for each in workload.slack_N[workload.task_N == 1]} == {0.5}
    assert setting.deadline_s == 1.25


def test_devices_carry_the_tiers_they_are_given() -> None:
    """One device with every tier, one with the smallest alone."""
    setting = OWN.setting()
    assert setting.fleet.candidate_count == len(fleets.TIERS) + 1
    assert len(setting.fleet.devices) == 2


def test_tasks_are_as_likely_as_they_are_said_to_be() -> None:
    """A share of nothing is none."""
    setting = replace(OWN, task_share=(0.0, 3.0)).setting()
    workload = setting.workload(np.arange(50) / 10.0, 5.0, np.random.default_rng(0))
    assert set(workload.task_N) == {1}


@pytest.mark.parametrize("seed", range(3))
def test_training_keeps_the_ratio_of_the_tasks_deadlines(seed: int) -> None:
    """An episode may stretch all deadlines, but the same for all tasks."""
    mesh = Mesh.build(profile=OWN.profile, quality=QUALITY, tasks=TASKS, devices=OWN.devices)
    workload = training_scenario(mesh, np.random.default_rng(seed), 400).workload
    chat_s, tags_s = (set(workload.slack_N[workload.task_N == task]) for task in (0, 1))
    assert chat_s
    assert tags_s
    assert chat_s.pop() == pytest.approx(4.0 * tags_s.pop())
