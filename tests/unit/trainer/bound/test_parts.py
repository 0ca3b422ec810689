"""The bound, shared out among the tasks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from router.fleet import build_fleet
from tests.unit.router import fleets
from tests.unit.trainer.bound.worlds import setups, workloads
from tests.unit.trainer.simulation.settings import config, traffic
from trainer.bound.parts import task_parts
from trainer.bound.performance import performance_bound
from trainer.simulation.simulate import SimulationConfig
from trainer.simulation.workload import Workload

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


@settings(max_examples=10, deadline=None)
@given(setup=setups(), offered=workloads())
def test_parts_add_up_to_the_bound(setup: SimulationConfig, offered: Workload) -> None:
    """Whatever the fleet and the requests; a task has no part below nothing."""
    part_K = task_parts(setup, offered)
    assert (part_K >= 0.0).all()
    if len(offered):
        bound = performance_bound(setup, offered)
        assert part_K.sum() == pytest.approx(bound * len(offered), abs=1e-6)


def test_a_task_with_long_answers_gets_less_where_there_is_no_room() -> None:
    """Alike tasks get alike parts; of requests that cost more, fewer are worth a large tier."""
    setup, offered = config(1), traffic(400.0, 3.0)
    count_K = np.bincount(offered.task_N)
    first, second = task_parts(setup, offered) / count_K
    assert first == pytest.approx(second, abs=0.1)
    offered.output_N[offered.task_N == 1] *= 6
    first_now, second_now = task_parts(setup, offered) / count_K
    assert second_now < first_now - 0.1


def test_without_devices_nothing_can_be_earned() -> None:
    """No task has a part."""
    setup = config(1)
    empty = build_fleet(fleets.catalog(), [], setup.profiles)
    none = SimulationConfig(empty, setup.catalog, setup.profiles)
    assert task_parts(none, traffic(50.0, 1.0)).tolist() == [0.0, 0.0]
