"""What a run of the simulator charges fits the relaxation that the bound is of."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from router.catalog import Catalog
from router.types import RewardKind
from tests.unit.trainer.bound.worlds import assigned, setups, workloads
from trainer.bound.relaxation import Shares, make_jobs
from trainer.simulation.simulate import (
    SimulationConfig,
    SimulationResult,
)
from trainer.simulation.workload import Workload

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


@settings(max_examples=6, deadline=None)
@given(setup=setups(), offered=workloads(), seed=st.integers(0, 1000))
def test_charges_fit_the_device_in_every_interval(
    setup: SimulationConfig, offered: Workload, seed: int
) -> None:
    """What the relaxation charges for answers on time never exceeds the time a device has."""
    assume(len(offered) > 0)
    hard = [replace(task, reward_kind=RewardKind.HARD) for task in setup.catalog.tasks]
    setup = replace(
        setup,
        catalog=Catalog(setup.catalog.tiers, tuple(hard), setup.catalog.quality_KT),
        events=(),
        safety=False,
    )
    rng = np.random.default_rng(seed)
    result = assigned(setup, offered, rng.integers(0, setup.fleet.candidate_count, len(offered)))
    jobs = make_jobs(setup, offered, np.ones(len(offered), np.bool_))
    level_LO = jobs.level_LO() * rng.uniform(0.5, 1.5)
    weight_LO = rng.dirichlet(np.ones(len(level_LO) + 2), len(jobs.group_O)).T
    cost_JO = jobs.cost_JO(Shares(level_LO, weight_LO))
    device_N = setup.fleet.arrays.device_C[result.action_N]
    option_N = _options(setup, jobs, result)
    for d in range(len(setup.fleet.devices)):
        mine = result.on_time_N & (device_N == d)
        for start_s, end_s in itertools.product(np.arange(0.0, 0.8, 0.1), np.arange(0.1, 2.0, 0.1)):
            inside = mine & (jobs.release_J >= start_s) & (jobs.end_J <= end_s)
            charged_s = cost_JO[inside, option_N[inside]].sum()
            assert charged_s <= max(0.0, end_s - start_s) + 1e-6


def _options(setup: SimulationConfig, jobs: Any, result: SimulationResult) -> NDArray[np.int64]:
    """Returns the option each request took: that of the group of its device with its costs."""
    option_C = np.zeros(setup.fleet.candidate_count, np.int64)
    rows = list(zip(jobs.group_O, jobs.step_O, jobs.batch_O, strict=True))
    for c in range(setup.fleet.candidate_count):
        device = int(setup.fleet.arrays.device_C[c])
        tier, endpoint = setup.fleet.candidate(c)
        step_s = setup.profiles[""].tiers[tier].scaled(1.0 / endpoint.speed).step_s
        group = next(g for g, devices in enumerate(jobs.devices_G) if device in devices)
        option_C[c] = next(o for o, row in enumerate(rows) if row[0] == group and row[1] == step_s)
    return option_C[result.action_N]
