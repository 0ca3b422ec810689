"""The performance no policy can exceed on given requests, however much it knows.

    performance_bound(config, workload, warm_up_s=1.0)

bounds `SimulationResult.performance(warm_up_s)` of every policy in the simulator, with or without
the safety net, with any number of routers. `relaxation` says why, `dual` how it is computed.

Shape letters: N requests, O options, M cells of time.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trainer.bound.devices import capacity_GM
from trainer.bound.dual import Dual
from trainer.bound.relaxation import Jobs, Shares, make_jobs
from trainer.simulation.simulate import SimulationConfig
from trainer.simulation.workload import Workload

Floats = NDArray[np.float64]

CELLS_PER_WINDOW = 16
"""Cells of time per shortest window: finer is tighter and slower."""
MOST_CELLS = 1000
LEVELS = 48
"""Levels of price per round of the search."""
ROUNDS = 3
SAMPLE = 1500
"""Requests the search for step shares looks at, about."""
SEARCH_STEPS = (1.0, 0.5, 0.25)
"""Shares of the weight that the search for step shares moves at a time."""


def performance_bound(
    config: SimulationConfig, workload: Workload, *, warm_up_s: float = 0.0
) -> float:
    """Returns a bound on the mean reward of requests that arrive after the warm-up.

    1.0 if there is no such request, as `SimulationResult.performance` has it.
    """
    jobs = make_jobs(config, workload, workload.arrival_N >= warm_up_s)
    if jobs.request_count == 0:
        return 1.0
    return _mean_bound(config, jobs, best_shares(config, jobs))


def window_bounds(
    config: SimulationConfig, workload: Workload, window_s: float, *, warm_up_s: float = 0.0
) -> Floats:
    """Returns a bound per window of arrival time, NaN for an empty one [W].

    Each window for itself: a policy may neglect all others, and the devices are free when it
    begins. The windows are those of `SimulationResult.windows`.
    """
    count = int((workload.duration_s - warm_up_s) / window_s)
    index_N = np.floor((workload.arrival_N - warm_up_s) / window_s).astype(np.int64)
    jobs = make_jobs(config, workload, (index_N >= 0) & (index_N < count))
    shares = best_shares(config, jobs) if jobs.request_count else None
    bound_W = np.full(count, np.nan)
    for w in np.unique(index_N[(index_N >= 0) & (index_N < count)]):
        part = make_jobs(config, workload, index_N == w)
        bound_W[w] = _mean_bound(config, part, shares)
    return bound_W


def _mean_bound(config: SimulationConfig, jobs: Jobs, shares: Shares | None) -> float:
    """Returns the bound on the mean reward of at least one request."""
    if shares is None or len(jobs.group_O) == 0:
        return 0.0
    dual = make_dual(config, jobs, shares)
    price_GM = dual.improve(dual.flat(), LEVELS, ROUNDS)
    return min(float(jobs.value_JO.max()), dual.value(price_GM) / jobs.request_count)


def make_dual(config: SimulationConfig, jobs: Jobs, shares: Shares) -> Dual:
    """Returns the relaxation over cells of time, for at least one request and option."""
    edge_M1 = _cell_edges(jobs)
    last = len(edge_M1) - 2
    # A window touches every cell it has a moment in: more than it has, never less.
    first_J = np.clip(np.searchsorted(edge_M1, jobs.release_J, side="right") - 1, 0, last)
    last_J = np.clip(np.searchsorted(edge_M1, jobs.end_J, side="left") - 1, first_J, last)
    pairs_W2, window_J = np.unique(np.stack([first_J, last_J], 1), axis=0, return_inverse=True)
    return Dual(
        capacity_GM=capacity_GM(config.events, jobs.devices_G, jobs.memory_s, edge_M1),
        first_W=pairs_W2[:, 0].copy(),
        last_W=pairs_W2[:, 1].copy(),
        window_J=window_J.ravel().astype(np.int64),
        start_N1=jobs.start_N1,
        value_JO=jobs.value_JO,
        cost_JO=jobs.cost_JO(shares),
        group_O=jobs.group_O,
    )


def _cell_edges(jobs: Jobs) -> Floats:
    """Returns edges of cells from the first arrival to the end of the last window, seconds."""
    start_s, end_s = float(jobs.release_J.min()), float(jobs.end_J.max())
    shortest_s = float((jobs.end_J - jobs.release_J).min())
    cells = math.ceil((end_s - start_s) / max(shortest_s, 1e-6) * CELLS_PER_WINDOW)
    return np.linspace(start_s, end_s, max(2, min(MOST_CELLS, cells) + 1))


def best_shares(config: SimulationConfig, jobs: Jobs) -> Shares | None:
    """Returns shares of the steps: any are valid, these give about the least bound.

    Coordinate search over the weights under one price for all time, on every n-th request, with
    capacity to match. None if there is nothing to serve with.
    """
    if len(jobs.group_O) == 0:
        return None
    part = jobs.every(max(1, jobs.request_count // SAMPLE))
    ends = np.array([float(jobs.release_J.min()), float(jobs.end_J.max())])
    capacity_G1 = capacity_GM(config.events, jobs.devices_G, jobs.memory_s, ends)
    capacity_G1 *= part.request_count / jobs.request_count
    zeros = np.zeros(1, np.int64)
    window_J = np.zeros(len(part.release_J), np.int64)

    def score(trial: Shares) -> float:
        dual = Dual(
            capacity_G1,
            zeros,
            zeros,
            window_J,
            part.start_N1,
            part.value_JO,
            part.cost_JO(trial),
            part.group_O,
        )
        return dual.value(dual.flat())

    level_LO = jobs.level_LO()
    weight_LO = np.zeros((len(level_LO) + 2, len(jobs.group_O)))
    weight_LO[0] = 1.0
    shares = Shares(level_LO, weight_LO)
    best = score(shares)
    useful_LO = np.ones(weight_LO.shape, np.bool_)
    useful_LO[1] = np.isfinite(jobs.room_O)
    for step in SEARCH_STEPS:
        for term, option in np.argwhere(useful_LO):
            trial = shares.moved(int(term), int(option), step)
            if (value := score(trial)) < best:
                best, shares = value, trial
    return shares
