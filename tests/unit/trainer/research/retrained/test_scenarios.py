"""Episodes of a shift, for its training alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.trainer.evaluation import subjects
from trainer.evaluation.shifts import Shift, shifted_settings, shifts_of
from trainer.research.retrained.scenarios import shift_scenarios, training_seed
from trainer.simulation.scenarios import Mesh

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


SETTING = subjects.setting()


SHIFTS = {shift.name: shift for shift in shifts_of(shifted_settings(SETTING))}


def mesh() -> Mesh:
    """Returns the nominal mesh."""
    return Mesh.build(
        profile=SETTING.profiles[""],
        quality=subjects.QUALITY,
        tasks=SETTING.catalog.tasks,
        deadline_s=SETTING.deadline_s,
        devices=2,
    )


@pytest.mark.parametrize("name", sorted(SHIFTS))
def test_episodes_are_of_the_shift_alone(name: str) -> None:
    """Its costs, tasks, routers, staleness and losses, at rates it is evaluated at."""
    shift, settings = SHIFTS[name], shifted_settings(SETTING)
    source = shift_scenarios(shift, settings[shift.setting], subjects.PLAN, 2000.0)
    scenario = source(mesh(), np.random.default_rng(1), 300)
    config, workload = scenario.config, scenario.workload
    assert config.profiles == settings[shift.setting].profiles
    assert (config.routers, config.staleness_s) == (shift.routers, shift.staleness_s)
    assert config.events == shift.events(workload.duration_s)
    if name == "task hard":
        assert set(workload.task_N) == {1}


def test_rates_span_those_of_the_evaluation() -> None:
    """From the lowest to the highest share of what always-small holds, no further."""
    plan = replace(subjects.PLAN, shift_shares=(0.1, 0.8))
    source = shift_scenarios(Shift("nominal"), SETTING, plan, 1000.0)
    rng = np.random.default_rng(2)
    workloads = [source(mesh(), rng, 300).workload for _ in range(40)]
    rates = [len(workload) / workload.duration_s for workload in workloads]
    assert 80.0 < min(rates) < 150.0
    assert 550.0 < max(rates) < 900.0


def test_every_shift_trains_on_a_stream_of_its_own() -> None:
    """Seeds differ by shift and by the study's seed, and are one word, as no evaluation's is."""
    seeds = {training_seed(seed, name) for seed in (1, 2) for name in SHIFTS}
    assert len(seeds) == 2 * len(SHIFTS)
    assert all(0 <= seed < 2**32 for seed in seeds)
