"""Policy search for the scheduled price (`router/policies/scheduled_price.py`), knot by knot.

A knot speaks for a small range of loads, so its values are searched for there alone: a few
simulations around its load, all other knots held. That makes one search over a hundred numbers ten
small ones over ten each (block coordinate descent), each by CMA-ES (Hansen, arXiv 1604.00772).
Every generation meets new traffic, the same for all its members.

Shape letters: K knots, P parameters, V values of a knot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import cma
import numpy as np
from numpy.typing import NDArray

from router.dqn.snapshot import zero_weights
from router.features import FEATURE_COUNT, SHIFT_COLUMN
from router.policies import scheduled_price
from router.profile import LatencyProfile
from trainer.learning.offline.config import PriceSearchConfig
from trainer.simulation.scenarios import (
    TRUE_COSTS,
    Mesh,
    Scenario,
    full_batch_times_s,
    skewed_share,
)
from trainer.simulation.simulate import FleetEvent, PolicySpec, SimulationConfig, simulate
from trainer.simulation.threads import side_by_side
from trainer.simulation.workload import gamma_renewal, make_workload, markov_modulated, poisson

GOAL = 0.997
PENALTY = 4.0
"""Charged per unit of availability a table lacks of the goal, or of price's if that is less."""
KINDS = (*("poisson",) * 4, "skewed", "slower", "loss", "clumps", "markov", "stale")
"""What each member of the search meets; much of it steady, since the network sees the rest.

skewed: steady, nearly all of it one task. slower: steady, the devices up to `SLOWEST` times slower
than routers believe. loss: steady, a device lost for a while. stale: steady, two or four routers
that see each other late.
"""
SLOWEST = 1.35
LOW = (-15.0, 0.0, 0.0, 0.0, 0.3, 1.0, 0.0)
HIGH = (8.0, 60.0, 1.5, 2.0, 5.0, 60.0, 0.4)
WIDTH = (0.8, 4.0, 0.15, 0.15, 0.25, 2.5, 0.04)
"""Least, largest value and first step of the search, in the order of `scheduled_price.VALUES`."""
BOUNDARY_LOW, BOUNDARY_HIGH, BOUNDARY_WIDTH = -0.3, 1.3, 0.08
NARROWING = 0.6
"""First step of a pass over that of the pass before."""
FIRST_RATE, LAST_RATE = 0.3, 1.15
"""Rates of the first and last knot: shares of the rate at which the largest tier alone would fill
all devices, and of the highest rate to train for."""
START_PENALTY = 0.1
START_LEAD = 0.3
"""Where bands start: the penalty outside of them, and how much of the way to the next smaller
tier's capacity a band begins to shrink before the larger tier is full."""


class Ladder:
    """Between rates and ladder loads on one mesh, at its mean lengths."""

    def __init__(self, mesh: Mesh) -> None:
        """Reads the full-batch times of the tiers."""
        tier_C, time_C = mesh.fleet.arrays.tier_C, full_batch_times_s(mesh.fleet, mesh.lengths)
        tiers = range(len(mesh.catalog.tiers))
        self._time_T = np.array([time_C[tier_C == tier].min() for tier in tiers])
        self._devices = len(mesh.devices)
        self._width = math.log(max(self._time_T[-1] / self._time_T[0], 1.5))

    def rate_rps(self, load: float) -> float:
        """Returns the rate at a ladder load."""
        return math.exp(load * self._width) * self._devices / float(self._time_T[-1])

    def load(self, rate_rps: float) -> float:
        """Returns the ladder load of a rate."""
        return math.log(rate_rps * float(self._time_T[-1]) / self._devices) / self._width

    def full_load(self, tier: int) -> float:
        """Returns the load at which a tier alone would just be full."""
        return math.log(float(self._time_T[-1] / self._time_T[tier])) / self._width


def start_table(
    mesh: Mesh, price_P: NDArray[np.float64], config: PriceSearchConfig
) -> NDArray[np.float64]:
    """Returns the table the search starts from: price at every knot, bands by capacity.

    Where a load lies between what two neighbouring tiers can carry alone, the larger one's band
    shrinks from all devices to none.
    """
    ladder = Ladder(mesh)
    tiers = len(mesh.catalog.tiers)
    first = ladder.load(FIRST_RATE * mesh.large_rps)
    last = ladder.load(LAST_RATE * mesh.max_rate_rps)
    knots = max(2, round((last - first) / config.step) + 1)
    step = (last - first) / (knots - 1)
    header = [float(knots), float(max(1, tiers - 1)), first, step]
    rows: list[float] = []
    for k in range(knots):
        y = first + k * step
        level = price_P[0] + price_P[2] * y + price_P[3] * y * y
        rows += [level, price_P[1], price_P[4], price_P[5], price_P[6], price_P[7], START_PENALTY]
        for tier in range(1, max(2, tiers)):
            upper, lower = ladder.full_load(min(tier, tiers - 1)), ladder.full_load(tier - 1)
            share = (y - upper + START_LEAD * (lower - upper)) / max(lower - upper, 1e-6)
            rows.append(min(1.0, max(0.0, share)))
    return np.array([*price_P[: scheduled_price.PRICE_COUNT], *header, *rows])


def spec_of(params_P: NDArray[np.float64]) -> PolicySpec:
    """Returns the policy that chooses by the table alone, on the load as seen."""
    return PolicySpec("scheduled-price", np.append(params_P, 0.0), name="scheduled")


def reckoning_spec_of(params_P: NDArray[np.float64]) -> PolicySpec:
    """Returns the policy that chooses by the table, on the load as reckoned: slower, by features.

    Its network is the one weight a run of training starts from.
    """
    weights = zero_weights(FEATURE_COUNT, 1)
    weights.w3_P[weights.hidden_count + SHIFT_COLUMN] = 1.0
    return PolicySpec.dqn(weights, base_P=params_P)


def knot_scenarios(
    mesh: Mesh, load: float, step: float, rng: np.random.Generator, requests: int
) -> list[Scenario]:
    """Returns what a knot's values must stand, around one ladder load: one scenario of each kind.

    Rates that move and clumps come from below, since they visit higher loads by themselves.
    """
    ladder, top = Ladder(mesh), 1.2 * mesh.max_rate_rps
    found = []
    for kind in KINDS:
        moving = kind in ("clumps", "markov")
        offset = rng.uniform(-1.5, 0.0) if moving else rng.uniform(-0.5, 0.5)
        rate = min(top, ladder.rate_rps(load + offset * step))
        duration_s = max(requests / rate, 4.0 * mesh.deadline_s)
        if kind == "clumps":
            arrivals = gamma_renewal(rate, float(rng.uniform(2.0, 9.0)), duration_s, rng)
        elif kind == "markov":
            rates = [0.3 * rate, rate, min(2.2 * rate, top)]
            arrivals = markov_modulated(rates, 5.0 * mesh.deadline_s, duration_s, rng)
        else:
            arrivals = poisson(rate, duration_s, rng)
        workload = make_workload(
            arrivals,
            duration_s,
            rng=rng,
            deadline_s=mesh.deadlines(mesh.deadline_s),
            task_share=_task_share(mesh, kind, rng),
            lengths=mesh.lengths,
        )
        config = _world(mesh, kind, duration_s, rng)
        found.append(Scenario(config, workload, int(rng.integers(2**31))))
    return found


def _task_share(mesh: Mesh, kind: str, rng: np.random.Generator) -> list[float]:
    """Returns the shares of the tasks: about even, or nearly all one task."""
    tasks = len(mesh.catalog.tasks)
    if kind == "skewed":
        return skewed_share(mesh, int(rng.integers(tasks)))
    return list(rng.dirichlet(np.full(tasks, 8.0)))


def _world(mesh: Mesh, kind: str, duration_s: float, rng: np.random.Generator) -> SimulationConfig:
    """Returns the world of a kind of scenario, the safety net off."""
    true = mesh.profile
    if kind == "slower":
        factor = float(rng.uniform(1.0, SLOWEST))
        slower = {name: tier.scaled(factor) for name, tier in true.tiers.items()}
        true = LatencyProfile(f"{true.name}-slower", "assumed", slower)
    events: tuple[FleetEvent, ...] = ()
    if kind == "loss" and len(mesh.devices) > 1:
        device = int(rng.integers(len(mesh.devices)))
        start_s, end_s = (float(share) * duration_s for share in np.sort(rng.uniform(0.2, 1.0, 2)))
        events = (FleetEvent(start_s, device, "lost"), FleetEvent(end_s, device, "back"))
    is_stale = kind == "stale"
    return SimulationConfig(
        mesh.fleet,
        mesh.catalog,
        {"": mesh.profile, TRUE_COSTS: true},
        safety=False,
        routers=int(rng.choice([2, 4])) if is_stale else 1,
        staleness_s=1.25 * mesh.deadline_s if is_stale else 0.0,
        report_interval_s=0.125 * mesh.deadline_s,
        events=events,
    )


def gains(
    tables: Sequence[NDArray[np.float64]],
    price: PolicySpec,
    scenarios: Sequence[Scenario],
    warm_up_s: float,
) -> NDArray[np.float64]:
    """Returns each table's mean gain in performance over price, missed availability charged."""

    def run(table_P: NDArray[np.float64] | None) -> NDArray[np.float64]:
        found = []
        for s in scenarios:
            spec = price
            if table_P is not None:
                is_stale = s.config.routers > 1
                spec = reckoning_spec_of(table_P) if is_stale else spec_of(table_P)
            result = simulate(s.config, s.workload, spec, s.seed)
            found.append([result.performance(warm_up_s), result.availability(warm_up_s)])
        return np.array(found)

    old_SX, *new_SX = side_by_side(run, [None, *tables])
    goal_S = np.minimum(GOAL, old_SX[:, 1])
    found = [
        new[:, 0] - old_SX[:, 0] - PENALTY * np.maximum(0.0, goal_S - new[:, 1]) for new in new_SX
    ]
    return np.array([gain_S.mean() for gain_S in found])


class PriceSearch:
    """One search: knot after knot, pass after pass; its state can be saved between knots."""

    def __init__(
        self,
        mesh: Mesh,
        price_P: NDArray[np.float64],
        seed: int,
        config: PriceSearchConfig | None = None,
    ) -> None:
        """Starts from `price` at every knot and bands by capacity."""
        self._mesh = mesh
        self._config = config or PriceSearchConfig()
        self._rng = np.random.default_rng([seed, 41])
        self._base = PolicySpec("price", np.append(price_P[: scheduled_price.PRICE_COUNT], 0.0))
        self.table_P = start_table(mesh, price_P, self._config)
        """Parameters of the price and the table so far."""
        self.knots_done = 0
        self._start = scheduled_price.PRICE_COUNT + scheduled_price.HEADER
        knots, boundaries, self._first, self._step = self.table_P[
            scheduled_price.PRICE_COUNT : self._start
        ]
        self._knots = int(knots)
        self._width = scheduled_price.VALUE_COUNT + int(boundaries)
        self._unit_V = np.array([*WIDTH, *[BOUNDARY_WIDTH] * int(boundaries)])
        self._low_V = np.array([*LOW, *[BOUNDARY_LOW] * int(boundaries)]) / self._unit_V
        self._high_V = np.array([*HIGH, *[BOUNDARY_HIGH] * int(boundaries)]) / self._unit_V

    @property
    def share_done(self) -> float:
        """Share of the search that is done, 0 to 1."""
        return self.knots_done / (len(self._config.generations) * self._knots)

    def warm_up(self) -> None:
        """Compiles what the search runs."""
        few = knot_scenarios(self._mesh, self._first, self._step, np.random.default_rng(0), 50)
        gains([self.table_P], self._base, few, 0.0)

    def generation_s(self) -> float:
        """Returns the time one generation takes here, about, seconds: the middle knot's."""
        start_s = time.perf_counter()
        load = self._first + 0.5 * (self._knots - 1) * self._step
        rng = np.random.default_rng(0)
        scenarios = knot_scenarios(self._mesh, load, self._step, rng, self._config.requests)
        gains([self.table_P], self._base, scenarios, 0.0)
        return 0.5 * (time.perf_counter() - start_s) * (self._config.population + 1)

    def full_s(self) -> float:
        """Returns the time the whole search would take here, about, seconds."""
        return sum(self._config.generations) * self._knots * self.generation_s()

    def shorten(self, share: float) -> None:
        """Has the search do about `share` of its work: fewer passes, the last of them shorter.

        Where that is not even one generation per knot the table stays as it starts: price, with
        bands by capacity.
        """
        config = self._config
        if share >= 1.0:
            return
        left = int(share * sum(config.generations))
        if left < 1:
            self.knots_done = len(config.generations) * self._knots
            return
        kept: list[int] = []
        for generations in config.generations:
            if sum(kept) < left:
                kept.append(min(generations, left - sum(kept)))
        self._config = replace(config, generations=tuple(kept))

    def _gains(
        self, tables: Sequence[NDArray[np.float64]], scenarios: Sequence[Scenario]
    ) -> NDArray[np.float64]:
        return gains(tables, self._base, scenarios, self._mesh.deadline_s)

    def next_knot(self) -> float:
        """Searches for the next knot; returns its gain over price on traffic not searched on."""
        config, rng = self._config, self._rng
        turn, knot = divmod(self.knots_done, self._knots)
        load = self._first + knot * self._step
        start = self._start + knot * self._width
        part = slice(start, start + self._width)
        # A value on a bound may come back from its unit on the wrong side of it.
        old_V = np.clip(self.table_P[part] / self._unit_V, self._low_V, self._high_V)

        def member(value_V: NDArray[np.float64]) -> NDArray[np.float64]:
            trial_P = self.table_P.copy()
            trial_P[part] = np.clip(value_V, self._low_V, self._high_V) * self._unit_V
            return trial_P

        search = cma.CMAEvolutionStrategy(
            old_V,
            NARROWING**turn,
            {
                "bounds": [self._low_V, self._high_V],
                "popsize": config.population,
                "seed": int(rng.integers(1, 2**31)),
                "verbose": -9,
            },
        )
        for _ in range(config.generations[turn]):
            scenarios = knot_scenarios(self._mesh, load, self._step, rng, config.requests)
            points = search.ask()
            search.tell(points, (-self._gains([member(x) for x in points], scenarios)).tolist())
        # The mean of what is drawn from: a single member may have been lucky.
        new_V = np.asarray(search.result.xfavorite)
        fresh = knot_scenarios(self._mesh, load, self._step, rng, 3 * config.requests)
        old, new = self._gains([member(old_V), member(new_V)], fresh)
        if new > old:
            self.table_P[part] = member(new_V)[part]
        self.knots_done += 1
        return float(max(new, old))

    def get_state(self) -> dict[str, Any]:
        """Returns what is needed to go on, as JSON values."""
        return {
            "table": self.table_P.tolist(),
            "knots_done": self.knots_done,
            "generations": list(self._config.generations),
            "rng": self._rng.bit_generator.state,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `get_state` returned."""
        self.table_P = np.array(state["table"], np.float64)
        self.knots_done = int(state["knots_done"])
        self._config = replace(self._config, generations=tuple(state["generations"]))
        self._rng.bit_generator.state = state["rng"]
