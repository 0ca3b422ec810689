"""Prices: any give a bound, and the search finds about the best."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linprog

from tests.unit.trainer.simulation.settings import config
from trainer.bound.dual import Dual
from trainer.bound.performance import best_shares, make_dual
from trainer.bound.relaxation import make_jobs
from trainer.simulation.workload import gamma_renewal, make_workload

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def test_any_prices_give_a_bound_and_the_search_finds_about_the_best() -> None:
    """Random prices are dearer; the linear program over the same cells finds no more than 0.2 %."""
    rng = np.random.default_rng(0)
    offered = make_workload(
        gamma_renewal(250.0, 6.0, 3.0, rng), 3.0, rng=rng, task_share=(1.0, 1.0)
    )
    jobs = make_jobs(config(1), offered, np.ones(len(offered), np.bool_))
    shares = best_shares(config(1), jobs)
    assert shares is not None
    dual = make_dual(config(1), jobs, shares)
    flat_GM = dual.flat()
    found = dual.value(dual.improve(flat_GM, 48, 3))
    best = _linear_program(dual)
    assert best <= found + 1e-6
    assert found <= best * 1.002
    assert found < dual.value(flat_GM) * 0.999
    for _ in range(5):
        assert dual.value(flat_GM * rng.uniform(0.2, 3.0, flat_GM.shape)) >= best


def _linear_program(dual: Dual) -> float:
    """Returns the least value of a one-group dual over prices, window prices and surpluses."""
    cells, windows, count = dual.capacity_GM.shape[1], len(dual.first_W), len(dual.start_N1) - 1
    rows: list[NDArray[np.float64]] = []
    limits: list[float] = []
    for w in range(windows):
        for m in range(dual.first_W[w], dual.last_W[w] + 1):
            row = np.zeros(cells + windows + count)
            row[cells + w], row[m] = 1.0, -1.0
            rows.append(row)
            limits.append(0.0)
    for i in range(count):
        for o in np.flatnonzero(dual.value_JO[i] > 0.0):
            row = np.zeros(cells + windows + count)
            row[cells + dual.window_J[i]] = -dual.cost_JO[i, o]
            row[cells + windows + i] = -1.0
            rows.append(row)
            limits.append(-dual.value_JO[i, o])
    weight = np.concatenate([dual.capacity_GM[0], np.zeros(windows), np.ones(count)])
    solution = linprog(weight, A_ub=np.array(rows), b_ub=limits, bounds=(0.0, None))
    return float(solution.fun)
