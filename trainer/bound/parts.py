"""What each task earns where all requests together earn the most: the bound, taken apart.

The bound of `performance` is one number for all requests, since they share the devices. Here it is
shared out: at the prices of that bound every request takes the option that leaves it most, and what
that option earns is the request's part. Parts add up to the bound. A part is no bound of its own:
a policy that neglects the other tasks can exceed it.

Shape letters: N requests, J (request, window) pairs, O options, K tasks, G groups, M cells,
W windows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.bound.dual import Dual, least_prices
from trainer.bound.performance import LEVELS, ROUNDS, best_shares, make_dual
from trainer.bound.relaxation import make_jobs
from trainer.simulation.simulate import SimulationConfig
from trainer.simulation.workload import Workload

Floats = NDArray[np.float64]

_SPREAD = 0.05
"""At the best price requests that are alike take one option as gladly as another, though only some
of them can have it. So parts are mixed of what is taken at prices this much lower and higher."""


def task_parts(config: SimulationConfig, workload: Workload) -> Floats:
    """Returns each task's part of the bound on the sum of all rewards [K].

    Their sum over the number of requests is at least what any policy's mean reward can be.
    """
    task_count = len(config.catalog.tasks)
    jobs = make_jobs(config, workload, np.ones(len(workload), np.bool_))
    if jobs.request_count == 0 or (shares := best_shares(config, jobs)) is None:
        return np.zeros(task_count)
    dual = make_dual(config, jobs, shares)
    price_GM = dual.improve(dual.flat(), LEVELS, ROUNDS)
    bound = min(float(jobs.value_JO.max()) * jobs.request_count, dual.value(price_GM))
    more_K, less_K = (
        np.bincount(workload.task_N, chosen_values(dual, price_GM * factor), task_count)
        for factor in (1.0 - _SPREAD, 1.0 + _SPREAD)
    )
    more, less = float(more_K.sum()), float(less_K.sum())
    share = min(1.0, max(0.0, (bound - less) / (more - less))) if more > less else 1.0
    part_K = share * more_K + (1.0 - share) * less_K
    total = float(part_K.sum())
    if total <= 0.0:
        # Nothing is worth its price: by number, then.
        part_K, total = np.bincount(workload.task_N, minlength=task_count).astype(float), 1.0
        total = float(part_K.sum())
    parts_K: Floats = part_K * (bound / total)
    return parts_K


def chosen_values(dual: Dual, price_GM: Floats) -> Floats:
    """Returns what the option earns that leaves each request most at the prices, or 0 [N]."""
    price_GW = least_prices(price_GM, dual.first_W, dual.last_W)
    price_JO = price_GW[dual.group_O][:, dual.window_J].T
    gain_JO = dual.value_JO - dual.cost_JO * price_JO
    option_J = gain_JO.argmax(axis=1)
    rows_J = np.arange(len(gain_JO))
    gain_J, value_J = gain_JO[rows_J, option_J], dual.value_JO[rows_J, option_J]
    # One job per request, but for soft deadlines; the best of them is its choice.
    request_J = np.repeat(np.arange(len(dual.start_N1) - 1), np.diff(dual.start_N1))
    order_J = np.lexsort((gain_J, request_J))
    last_N = order_J[dual.start_N1[1:] - 1]
    return np.where(gain_J[last_N] > 0.0, value_J[last_N], 0.0)
