"""Evaluation in the simulator: sweeps of load, the fluid reference, means and intervals.

Shape letters: S seeds, K tasks, T tiers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.stats import t as student_t

from router.catalog import Catalog, QualityTable
from router.fleet import EndpointSpec, Fleet, build_fleet
from router.profile import LatencyProfile
from router.types import Task
from trainer.simulation.simulate import PolicySpec, SimulationConfig, SimulationResult, simulate
from trainer.simulation.workload import (
    OPT_LENGTHS,
    Lengths,
    Workload,
    gamma_renewal,
    make_workload,
    markov_modulated,
    poisson,
    square_wave,
)

HOLDS = 0.99
"""Availability from which on a policy is said to hold a load."""


@dataclass(frozen=True)
class Setting:
    """What is held fixed in a sweep.

    Attributes:
        name: for tables.
        catalog: tiers, tasks, quality.
        fleet: candidates.
        profiles: true costs.
        deadline_s: deadline of every request, seconds.
        lengths: prompt and output lengths.
        task_share: share of each task.
    """

    name: str
    catalog: Catalog
    fleet: Fleet
    profiles: Mapping[str, LatencyProfile]
    deadline_s: float
    lengths: Lengths = OPT_LENGTHS
    task_share: tuple[float, ...] = ()

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each task, even unless given."""
        return self.task_share or tuple(1.0 for _ in self.catalog.tasks)

    def config(self, *, safety: bool = True) -> SimulationConfig:
        """Returns a simulation config of this setting; use `dataclasses.replace` for the rest."""
        return SimulationConfig(self.fleet, self.catalog, self.profiles, safety=safety)

    def workload(
        self, arrival_N: NDArray[np.float64], duration_s: float, rng: np.random.Generator
    ) -> Workload:
        """Returns arrivals with this setting's tasks, lengths and deadline."""
        return make_workload(
            arrival_N,
            duration_s,
            rng=rng,
            deadline_s=self.deadline_s,
            task_share=self.shares,
            lengths=self.lengths,
        )


def shared_fleet_setting(
    name: str,
    profile: LatencyProfile,
    quality: QualityTable,
    *,
    tiers: Sequence[str] = ("small", "medium", "large"),
    device_count: int = 4,
    deadline_s: float = 0.4,
    lengths: Lengths = OPT_LENGTHS,
) -> Setting:
    """Returns a setting in which every device serves every tier and all tasks are equally likely.

    Raises:
        InvalidFileError: the quality table lacks a tier of a task.
    """
    tasks = tuple(
        Task(task, deadline_s, expected_output_tokens=lengths.output_mean)
        for task in quality.quality
    )
    catalog = Catalog.build(tuple(tiers), tasks, quality)
    endpoints = [
        EndpointSpec(f"device-{i}", f"127.0.0.1:{8001 + i}", f"device-{i}", {t: t for t in tiers})
        for i in range(device_count)
    ]
    profiles = {"": profile}
    fleet = build_fleet(catalog, endpoints, profiles)
    return Setting(name, catalog, fleet, profiles, deadline_s, lengths)


# ------------------------------------------------------------------------------ fluid reference


def fluid_reference(setting: Setting, rate_rps: float, grid: int = 16) -> float:
    """Returns the performance of the best steady fluid mix at a rate. A reference, not a bound.

    All devices hold one set A of active tiers and one cycle time T; requests have mean lengths
    (prompt p, output o). A request needs o cycles, so T <= deadline / o (its own prompt taken
    off). Per cycle a device receives (rate / devices) T requests. With x_kt the share of task k
    sent to tier t in A, w_k the task shares:

        maximise    sum_kt w_k q_kt x_kt
        subject to  sum_{t in A} step_t + (rate T / devices) sum_kt w_k x_kt
                      (prompt_t p + sequence_t o) <= T                        (device time)
                    (rate T / devices) o sum_k w_k x_kt <= batch_t            (batch limit)
                    sum_t x_kt <= 1, x >= 0

    For a given T this is a linear program; A runs over all sets of tiers and T over a grid, refined
    around its best point. Devices with different sets, or knowing each request's lengths, can do
    better, hence no bound.
    """
    profile = setting.profiles[""]
    tiers = [profile.tiers[tier] for tier in setting.catalog.tiers]
    prompt = setting.lengths.prompt_median * math.exp(setting.lengths.prompt_sigma**2 / 2.0)
    best = 0.0
    for size in range(1, len(tiers) + 1):
        for chosen in itertools.combinations(range(len(tiers)), size):
            steps_s = sum(tiers[t].step_s for t in chosen)
            prompt_s = max(tiers[t].per_prompt_token_s for t in chosen) * prompt
            low_s = steps_s * 1.02
            high_s = (setting.deadline_s - prompt_s) / setting.lengths.output_mean
            if high_s <= low_s:
                continue
            for _ in range(2):
                cycles_s = np.geomspace(low_s, high_s, grid)
                values = [
                    _fluid_program(setting, chosen, rate_rps, float(cycle_s), prompt)
                    for cycle_s in cycles_s
                ]
                top = int(np.argmax(values))
                best = max(best, values[top])
                low_s, high_s = cycles_s[max(0, top - 1)], cycles_s[min(grid - 1, top + 1)]
                if values[top] <= best - 0.02:
                    break  # this set of tiers is out of the race
    return best


def _fluid_program(
    setting: Setting, chosen: tuple[int, ...], rate_rps: float, cycle_s: float, prompt: float
) -> float:
    """Returns the optimum of the linear program for one set of tiers and one cycle time."""
    profile = setting.profiles[""]
    tiers = [profile.tiers[setting.catalog.tiers[t]] for t in chosen]
    output = setting.lengths.output_mean
    w_K = np.asarray(setting.shares) / np.sum(setting.shares)
    quality_KT = setting.catalog.quality_KT[:, chosen]
    tasks, count = quality_KT.shape
    per_cycle = rate_rps * cycle_s / len(setting.fleet.devices)
    time_T = np.array([t.per_prompt_token_s * prompt + t.per_sequence_s * output for t in tiers])
    rows = [per_cycle * (w_K[:, None] * time_T).ravel()]
    limits = [cycle_s - sum(tier.step_s for tier in tiers)]
    for t, tier in enumerate(tiers):
        row_KT = np.zeros((tasks, count))
        row_KT[:, t] = per_cycle * output * w_K
        rows.append(row_KT.ravel())
        limits.append(float(tier.max_batch))
    for k in range(tasks):
        row_KT = np.zeros((tasks, count))
        row_KT[k] = 1.0
        rows.append(row_KT.ravel())
        limits.append(1.0)
    gain = (w_K[:, None] * quality_KT).ravel()
    solution = linprog(-gain, A_ub=np.array(rows), b_ub=limits, bounds=(0.0, 1.0), method="highs")
    return float(-solution.fun) if solution.success else 0.0


# ----------------------------------------------------------------------------------- scenarios


@dataclass(frozen=True)
class Scenario:
    """A named way to make arrivals of a mean rate.

    Attributes:
        name: for tables.
        make: arrivals of (rate_rps, duration_s, rng).
    """

    name: str
    make: Callable[[float, float, np.random.Generator], NDArray[np.float64]]


SCENARIOS: Mapping[str, Scenario] = {
    s.name: s
    for s in (
        Scenario("poisson", poisson),
        Scenario("gamma-cv4", lambda rate, duration, rng: gamma_renewal(rate, 4.0, duration, rng)),
        Scenario("gamma-cv8", lambda rate, duration, rng: gamma_renewal(rate, 8.0, duration, rng)),
        Scenario(
            "square-wave",
            lambda rate, duration, rng: square_wave(0.4 * rate, 1.6 * rate, 4.0, duration, rng),
        ),
        Scenario(
            "markov",
            lambda rate, duration, rng: markov_modulated(
                (0.3 * rate, rate, 2.2 * rate), 2.0, duration, rng
            ),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over seeds and half the width of its 95 % interval (Student's t; 0 for one seed)."""

    mean: float
    half: float

    def __str__(self) -> str:
        """Returns e.g. "0.972 ± 0.003"."""
        return f"{self.mean:.3f} ± {self.half:.3f}"


def interval(values: Iterable[float]) -> Interval:
    """Returns mean and 95 % interval of independent values, at least one."""
    value_S = np.asarray(list(values), dtype=np.float64)
    if len(value_S) < 2:
        return Interval(float(value_S.mean()), 0.0)
    error = value_S.std(ddof=1) / math.sqrt(len(value_S))
    return Interval(float(value_S.mean()), float(student_t.ppf(0.975, len(value_S) - 1) * error))


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One policy at one rate.

    Attributes:
        policy: name.
        rate_rps: offered rate.
        availability: share answered on time.
        performance: mean reward.
        reference: performance of the fluid reference at the rate.
        p50_s: median latency of answered requests, seconds.
        p99_s: 99th percentile, seconds.
        tier_share: share of offered requests answered per tier.
    """

    policy: str
    rate_rps: float
    availability: Interval
    performance: Interval
    reference: float
    p50_s: float
    p99_s: float
    tier_share: tuple[float, ...]

    @property
    def share(self) -> float:
        """Performance as a share of the fluid reference."""
        return self.performance.mean / self.reference if self.reference > 0 else 0.0


def sweep(
    setting: Setting,
    policies: Mapping[str, PolicySpec],
    rates_rps: Sequence[float],
    seeds: Sequence[int],
    *,
    duration_s: float = 12.0,
    warm_up_s: float = 1.0,
    scenario: str = "poisson",
    safety: bool = True,
    config: SimulationConfig | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[SweepRow]:
    """Runs every policy at every rate over the same workloads (one per rate and seed).

    Args:
        setting: fleet, tasks, deadline.
        policies: policies by name.
        rates_rps: mean rates.
        seeds: one workload each; never those used in training.
        duration_s: length of a run, seconds.
        warm_up_s: left out at the start, seconds.
        scenario: name in SCENARIOS.
        safety: safety net on or off; ignored if `config` is given.
        config: another config (routers, events) instead of the setting's own.
        progress: told one line per rate.
    """
    base = config or setting.config(safety=safety)
    rows: list[SweepRow] = []
    for rate_rps in rates_rps:
        reference = fluid_reference(setting, rate_rps)
        results: dict[str, list[SimulationResult]] = {name: [] for name in policies}
        for seed in seeds:
            rng = np.random.default_rng([seed, 7])
            arrival_N = SCENARIOS[scenario].make(rate_rps, duration_s, rng)
            workload = setting.workload(arrival_N, duration_s, rng)
            for name, policy in policies.items():
                results[name].append(simulate(base, workload, policy, seed))
        for name, runs in results.items():
            rows.append(_row(name, rate_rps, runs, reference, warm_up_s, len(setting.fleet.tiers)))
        if progress is not None:
            progress(f"{setting.name} {scenario} {rate_rps:g} req/s")
    return rows


def _row(
    name: str,
    rate_rps: float,
    runs: Sequence[SimulationResult],
    reference: float,
    warm_up_s: float,
    tier_count: int,
) -> SweepRow:
    answered = [run.latency_N[run.quality_N > 0] for run in runs]
    latency = np.concatenate(answered) if answered else np.zeros(0)
    quantiles = np.quantile(latency, [0.5, 0.99]) if len(latency) else (math.nan, math.nan)
    share_ST = np.array([run.tier_share(tier_count, warm_up_s) for run in runs])
    return SweepRow(
        name,
        rate_rps,
        interval(run.availability(warm_up_s) for run in runs),
        interval(run.performance(warm_up_s) for run in runs),
        reference,
        float(quantiles[0]),
        float(quantiles[1]),
        tuple(float(share) for share in share_ST.mean(axis=0)),
    )


def highest_held_rps(
    setting: Setting,
    policy: PolicySpec,
    *,
    low_rps: float,
    high_rps: float,
    seeds: Sequence[int],
    duration_s: float = 20.0,
    safety: bool = True,
    tolerance: float = 0.02,
) -> float:
    """Returns the highest Poisson rate at which a policy's mean availability is at least HOLDS.

    Bisection; availability is taken to fall with the rate. `low_rps` is returned if even that is
    not held.
    """
    config = setting.config(safety=safety)

    def holds(rate_rps: float) -> bool:
        values = []
        for seed in seeds:
            rng = np.random.default_rng([seed, 8])
            arrival_N = poisson(rate_rps, duration_s, rng)
            workload = setting.workload(arrival_N, duration_s, rng)
            values.append(simulate(config, workload, policy, seed).availability(1.0))
        return float(np.mean(values)) >= HOLDS

    low, high = low_rps, high_rps
    while high / low > 1.0 + tolerance:
        middle = math.sqrt(low * high)
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def with_routers(config: SimulationConfig, routers: int, staleness_s: float) -> SimulationConfig:
    """Returns the config with several routers that see each other late."""
    return replace(config, routers=routers, staleness_s=staleness_s)
