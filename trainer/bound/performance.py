"""The performance no policy can exceed on given requests, however much it knows.

    performance_bound(config, workload, warm_up_s=1.0)

bounds `SimulationResult.performance(warm_up_s)` of every policy in the simulator, with or without
the safety net, with any number of routers. `relaxation` says why, `dual` how it is computed.

Shape letters: N requests, O options, M cells of time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.bound.dual import Dual
from trainer.bound.relaxation import Jobs, capacity_GM, make_jobs
from trainer.simulation.simulate import SimulationConfig
from trainer.simulation.workload import Workload

Floats = NDArray[np.float64]

CELLS_PER_WINDOW = 16
MOST_CELLS = 1000
LEVELS = 48
ROUNDS = 3
SAMPLE = 3000
SEARCH_STEPS = (1.0, 0.5, 0.25, 0.12)
"""Shares of the weight that the search for step shares moves at a time."""


def performance_bound(
    config: SimulationConfig, workload: Workload, *, warm_up_s: float = 0.0
) -> float:
    """Returns a bound on the mean reward of requests that arrive after the warm-up.

    1.0 if there is no such request, as `SimulationResult.performance` has it.
    """
    return _bound(config, workload, workload.arrival_N >= warm_up_s)


def window_bounds(
    config: SimulationConfig, workload: Workload, window_s: float, *, warm_up_s: float = 0.0
) -> Floats:
    """Returns a bound per window of arrival time, NaN for an empty one [W].

    Each window for itself: a policy may neglect all others. The windows are those of
    `SimulationResult.windows`.
    """
    count = int((workload.duration_s - warm_up_s) / window_s)
    index_N = np.floor((workload.arrival_N - warm_up_s) / window_s).astype(np.int64)
    return np.array(
        [
            _bound(config, workload, index_N == w) if (index_N == w).any() else np.nan
            for w in range(count)
        ]
    )


def _bound(config: SimulationConfig, workload: Workload, chosen_N: NDArray[np.bool_]) -> float:
    count = int(chosen_N.sum())
    if count == 0:
        return 1.0
    jobs = make_jobs(config, workload, chosen_N)
    if len(jobs.group_O) == 0:
        return 0.0
    dual = make_dual(config, jobs)
    price_GM = dual.improve(dual.flat(), LEVELS, ROUNDS)
    return min(float(jobs.value_JO.max()), dual.value(price_GM) / count)


def make_dual(config: SimulationConfig, jobs: Jobs) -> Dual:
    """Returns the relaxation over cells of time, its step shares weighted for a tight bound."""
    length_J = jobs.end_J - jobs.release_J
    start_s, end_s = float(jobs.release_J.min()), float(jobs.end_J.max())
    cell_s = max(float(length_J.min()) / CELLS_PER_WINDOW, (end_s - start_s) / MOST_CELLS)
    edge_M1 = np.append(np.arange(start_s, end_s, cell_s), end_s)
    last = len(edge_M1) - 2
    first_J = np.clip(np.searchsorted(edge_M1, jobs.release_J, side="right") - 1, 0, last)
    last_J = np.clip(np.searchsorted(edge_M1, jobs.end_J, side="left") - 1, first_J, last)
    pairs_W2, window_J = np.unique(np.stack([first_J, last_J], 1), axis=0, return_inverse=True)
    available_GM = capacity_GM(config, jobs, edge_M1, float(length_J.max()))
    level_LO = jobs.level_LO()
    weight_LO = best_weights(jobs, level_LO, available_GM.sum(axis=1))
    return Dual(
        capacity_GM=available_GM,
        first_W=pairs_W2[:, 0].copy(),
        last_W=pairs_W2[:, 1].copy(),
        window_J=window_J.ravel().astype(np.int64),
        start_N1=jobs.start_N1,
        value_JO=jobs.value_JO,
        cost_JO=jobs.cost_JO(level_LO, weight_LO),
        group_O=jobs.group_O,
    )


def best_weights(jobs: Jobs, level_LO: Floats, capacity_G: Floats) -> Floats:
    """Returns weights of the step shares: any are valid, these give about the least bound.

    Coordinate search under one price for all time, on every n-th request, with capacity to match.
    """
    count = len(jobs.start_N1) - 1
    part = jobs.every(max(1, count // SAMPLE))
    capacity_G1 = capacity_G[:, None] * ((len(part.start_N1) - 1) / count)
    terms, options = len(level_LO) + 2, len(jobs.group_O)
    weight_LO = np.zeros((terms, options))
    weight_LO[0] = 1.0

    def score(trial_LO: Floats) -> float:
        cost_JO = part.cost_JO(level_LO, trial_LO)
        zeros = np.zeros(1, np.int64)
        window_J = np.zeros(len(cost_JO), np.int64)
        dual = Dual(
            capacity_G1, zeros, zeros, window_J, part.start_N1, part.value_JO, cost_JO, part.group_O
        )
        return dual.value(dual.flat())

    best = score(weight_LO)
    for step in SEARCH_STEPS:
        for option in range(options):
            for term in range(terms):
                trial_LO = weight_LO.copy()
                trial_LO[:, option] *= 1.0 - step
                trial_LO[term, option] += step
                if (value := score(trial_LO)) < best:
                    best, weight_LO = value, trial_LO
    return weight_LO
