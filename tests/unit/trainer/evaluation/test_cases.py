"""Cases: which requests a run gets and what is kept of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from router.types import SloKind
from tests.unit.trainer.evaluation import subjects
from tests.unit.trainer.simulation.settings import spec
from trainer.evaluation.cases import Case, outcome_of
from trainer.evaluation.jobs import Context
from trainer.evaluation.scenarios import SCENARIOS
from trainer.evaluation.suite import soft
from trainer.simulation.simulate import simulate

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles
SETTING = subjects.setting()


def test_late_answers_count_in_smooth_goodput_alone() -> None:
    """With soft deadlines beyond capacity, late work is discounted, not zeroed."""
    setting = soft(SETTING)
    rng = np.random.default_rng(1)
    workload = setting.workload(SCENARIOS["poisson"].make(150.0, 4.0, rng), 4.0, rng)
    run = simulate(setting.config(safety=False), workload, spec("static-large"), 1)
    found = outcome_of(run, 3, windowed=False)
    assert found.goodput_rps < found.smooth_goodput_rps < 150.0


@pytest.mark.parametrize("kind", list(SloKind))
def test_answers_in_time_count_whole_whatever_their_deadline_is_for(kind: SloKind) -> None:
    """A long answer whose tokens come in time is not late by its last one; a late one is."""
    tasks = tuple(replace(t, slo_kind=kind, token_interval_s=0.05) for t in SETTING.catalog.tasks)
    setting = replace(SETTING, catalog=replace(SETTING.catalog, tasks=tasks))
    rng = np.random.default_rng(1)
    workload = setting.workload(SCENARIOS["poisson"].make(4.0, 4.0, rng), 4.0, rng)
    long = replace(workload, output_N=np.full(len(workload), 60))
    in_time = kind is not SloKind.COMPLETE_ANSWER
    for slack_s, is_met in ((0.3, in_time), (0.001, False)):
        offered = replace(long, slack_N=np.full(len(long), slack_s))
        run = simulate(setting.config(safety=False), offered, spec("static-large"), 1)
        found = outcome_of(run, 3, windowed=False)
        assert found.availability == float(is_met)
        is_late = in_time and not is_met
        assert (found.goodput_rps < found.smooth_goodput_rps) is is_late
        assert (found.goodput_rps == found.smooth_goodput_rps) is not is_late


def test_cases_with_the_same_requests_are_paired() -> None:
    """Two routers get the very requests that one gets; another label gets others."""
    context = Context({"": SETTING}, {})
    one = Case("shifts", "nominal", 2.0, 100.0, 1, 3.0, ())
    two = Case("shifts", "2 routers, stale", 2.0, 100.0, 1, 3.0, (), requests_of="nominal")
    own = Case("shifts", "2 routers, stale", 2.0, 100.0, 1, 3.0, ())
    arrivals = [case.workload(context).arrival_N for case in (one, two, own)]
    np.testing.assert_array_equal(arrivals[0], arrivals[1])
    assert not np.array_equal(arrivals[0], arrivals[2])


def test_seeds_and_loads_draw_requests_of_their_own() -> None:
    """No two runs of a sweep share their arrivals."""
    context = Context({"": SETTING}, {})
    first = Case("sweep", "poisson", 2.0, 100.0, 1, 3.0, ()).workload(context)
    seed = Case("sweep", "poisson", 2.0, 100.0, 2, 3.0, ()).workload(context)
    load = Case("sweep", "poisson", 3.0, 100.0, 1, 3.0, ()).workload(context)
    assert len({float(each.arrival_N[0]) for each in (first, seed, load)}) == 3
