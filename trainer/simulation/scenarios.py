"""Random training and fixed evaluation scenarios on one mesh: rates, bursts, errors of the model.

What a policy meets live differs from what its router believes: costs are off by some ten percent,
there is latency outside the devices, traffic comes in bursts. Training draws all of that at random
(domain randomisation), so that the policy leans on what is robust.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router import kernels
from router.catalog import Catalog, QualityTable
from router.fleet import EndpointSpec, Fleet, build_fleet
from router.profile import LatencyProfile, TierProfile
from router.types import RewardKind, Task
from trainer.simulation.simulate import FleetEvent, SimulationConfig
from trainer.simulation.workload import (
    OPT_LENGTHS,
    REFERENCE_LENGTHS,
    Lengths,
    Times,
    Workload,
    gamma_renewal,
    make_workload,
    markov_modulated,
    piecewise,
    poisson,
)

TRUE_COSTS = "true"
"""Name of the profile that says what devices really take; routers believe the one named ""."""


class ScenarioError(ValueError):
    """A mesh cannot be simulated; the message names what is missing."""


@dataclass(frozen=True)
class Mesh:
    """One mesh to train for.

    Attributes:
        catalog: tiers, tasks, quality.
        profile: costs as routers know them.
        devices: tiers placed on each device.
        deadline_s: typical deadline, seconds; requests have their tasks' own.
        lengths: distribution of prompt and output lengths.
        fleet: the fleet as routers know it.
        large_rps: rate at which the largest tier alone would fill all devices.
        small_rps: rate at which the smallest tier alone would fill all devices.
        max_rate_rps: highest rate to train for.
    """

    catalog: Catalog
    profile: LatencyProfile
    devices: tuple[tuple[str, ...], ...]
    deadline_s: float
    lengths: Lengths
    fleet: Fleet
    large_rps: float
    small_rps: float
    max_rate_rps: float

    @classmethod
    def build(
        cls,
        *,
        profile: LatencyProfile,
        quality: QualityTable,
        tasks: Sequence[Task],
        devices: int | Sequence[Sequence[str]],
        deadline_s: float | None = None,
        max_rate_rps: float | None = None,
        lengths: Lengths | None = None,
    ) -> Mesh:
        """Builds a mesh.

        Args:
            profile: costs as routers know them.
            quality: quality table.
            tasks: the tasks.
            devices: a number (every tier on each) or the tiers of each.
            deadline_s: one deadline for all tasks, seconds; None: their own.
            max_rate_rps: highest rate to train for; None: what the smallest tier allows.
            lengths: distribution of lengths; None: what suits the profile.

        Raises:
            ScenarioError: something is missing or out of range.
            InvalidFileError: the quality table lacks a cell.
        """
        if not tasks:
            raise ScenarioError("tasks: at least one is needed")
        if deadline_s is not None:
            tasks = [replace(task, default_deadline_s=deadline_s) for task in tasks]
        deadline_s = typical_deadline_s(tasks)
        if not deadline_s > 0.0 or not math.isfinite(deadline_s):
            raise ScenarioError(f"deadline_s must be above 0 (got {deadline_s})")
        lengths = lengths or default_lengths(profile, tasks)
        tasks = expecting(tasks, lengths)
        placed = _placement(profile, devices)
        tiers = tuple(t for t in profile.tiers if any(t in device for device in placed))
        catalog = Catalog.build(tiers, tuple(tasks), quality)
        fleet = _fleet(catalog, profile, placed)
        time_C = full_batch_times_s(fleet, lengths)
        by_tier = [
            time_C[fleet.arrays.tier_C == t].min() / (fleet.arrays.tier_C == t).sum()
            for t in range(len(tiers))
        ]
        small_rps = 1.0 / by_tier[0]
        return cls(
            catalog,
            profile,
            placed,
            deadline_s,
            lengths,
            fleet,
            1.0 / by_tier[-1],
            small_rps,
            max_rate_rps or 0.55 * small_rps,
        )

    def deadlines(self, deadline_s: float) -> list[float]:
        """Returns a deadline per task, seconds, where the typical one is `deadline_s`."""
        return [
            deadline_s * (task.default_deadline_s / self.deadline_s) for task in self.catalog.tasks
        ]

    def rates(self, count: int) -> list[float]:
        """Returns `count` rates from a light load to the highest one, evenly in the logarithm."""
        low = 0.25 * self.large_rps
        high = max(self.max_rate_rps, 2.0 * low)
        return [float(rate) for rate in np.geomspace(low, high, count)]


def typical_deadline_s(tasks: Sequence[Task]) -> float:
    """Returns the median of the tasks' deadlines, seconds."""
    return float(np.median([task.default_deadline_s for task in tasks]))


def expecting(tasks: Sequence[Task], lengths: Lengths) -> list[Task]:
    """Returns tasks of which routers expect answers as long as they are simulated.

    All tasks have one distribution of lengths here. With the real tasks' expectations routers would
    first have to learn of it, by some fifty answers of each task that they misjudge.
    """
    return [replace(task, expected_output_tokens=lengths.output_mean) for task in tasks]


def full_batch_times_s(fleet: Fleet, lengths: Lengths) -> NDArray[np.float64]:
    """Returns the device time of a mean request on each candidate in full batches, seconds [C]."""
    prompt, output = lengths.prompt_mean, lengths.output_mean
    rows = range(fleet.candidate_count)
    return np.array([kernels.full_batch_time_s(fleet.arrays, c, prompt, output) for c in rows])


def default_lengths(profile: LatencyProfile, tasks: Sequence[Task]) -> Lengths:
    """Returns lengths that suit a mesh nobody has described: OPT's setting, or short texts."""
    if profile.name.startswith("opt"):
        return OPT_LENGTHS
    mean = float(np.mean([task.expected_output_tokens for task in tasks]))
    return replace(REFERENCE_LENGTHS, output_mean=mean, output_max=max(16, round(4 * mean)))


@dataclass(frozen=True)
class Scenario:
    """A world before it runs.

    Attributes:
        config: fleet, safety, events.
        workload: the traffic.
        seed: of the simulation.
    """

    config: SimulationConfig
    workload: Workload
    seed: int


def training_scenario(mesh: Mesh, rng: np.random.Generator, request_count: int) -> Scenario:
    """Returns a random scenario of about `request_count` requests."""
    low, high = 0.12 * mesh.large_rps, max(mesh.max_rate_rps, 0.5 * mesh.large_rps)
    # Near the limit the choices are hardest: every fourth episode is from the upper part.
    bottom = 0.5 * high if rng.random() < 0.25 else low
    rate = float(np.exp(rng.uniform(math.log(bottom), math.log(high))))
    duration_s = max(request_count / rate, 12.0 * mesh.deadline_s)
    deadline_s = mesh.deadline_s * float(np.exp(0.1 * rng.standard_normal()))
    soft = rng.random() < SOFT_SHARE
    catalog = mesh.catalog if not soft else _soft(mesh.catalog, deadline_s, rng)
    workload = make_workload(
        _arrivals(rate, high, duration_s, mesh.deadline_s, rng),
        duration_s,
        rng=rng,
        deadline_s=mesh.deadlines(deadline_s),
        task_share=rng.dirichlet(np.full(len(catalog.tasks), 3.0)).tolist(),
        lengths=mesh.lengths,
    )
    error = TRAINING_ERROR if rng.random() < ERROR_SHARE else NO_ERROR
    routers = int(rng.choice([1, 2, 4], p=[0.6, 0.2, 0.2]))
    config = SimulationConfig(
        fleet=mesh.fleet,
        catalog=catalog,
        profiles={"": mesh.profile, TRUE_COSTS: true_profile(mesh, error, rng)},
        safety=bool(rng.random() < 0.5),
        routers=routers,
        staleness_s=float(rng.uniform(0.05, 1.5)) * mesh.deadline_s if routers > 1 else 0.0,
        report_interval_s=0.125 * mesh.deadline_s,
        events=(*_slow_down(mesh, error, duration_s, rng), *_loss(mesh, duration_s, rng)),
    )
    return Scenario(config, workload, int(rng.integers(2**31)))


ERROR_SHARE = 0.2
"""Share of training episodes whose true costs are not those of the profile."""
SOFT_SHARE = 0.1
"""Share of training episodes with soft deadlines."""
SKEWED_SHARE = 0.95
"""Share of the one task in skewed traffic."""
LOSS_SHARE = 0.2
"""Share of training episodes in which a device is lost for a while."""


def _soft(catalog: Catalog, deadline_s: float, rng: np.random.Generator) -> Catalog:
    """Returns the catalog with soft deadlines of a random decay time."""
    decay_s = deadline_s * float(rng.uniform(0.2, 1.0))
    tasks = tuple(
        replace(task, reward_kind=RewardKind.SOFT, soft_decay_s=decay_s) for task in catalog.tasks
    )
    return replace(catalog, tasks=tasks)


def _loss(mesh: Mesh, duration_s: float, rng: np.random.Generator) -> tuple[FleetEvent, ...]:
    """Returns a device that is lost for a while, or nothing; one device always stays."""
    if len(mesh.devices) < 2 or rng.random() >= LOSS_SHARE:
        return ()
    device = int(rng.integers(len(mesh.devices)))
    start_s, end_s = np.sort(rng.random(2)) * duration_s
    return (
        FleetEvent(float(start_s), device, "lost"),
        FleetEvent(float(end_s), device, "back"),
    )


@dataclass(frozen=True, slots=True)
class ModelError:
    """How far true costs may be from the profile.

    Attributes:
        bias: mean of the logarithm of the common factor; above 0 = slower than believed.
        common: standard deviation of that logarithm.
        per_tier: standard deviation of the logarithm of each tier's own factor.
        overhead: largest latency outside the devices, in deadlines.
        slow_down: probability of a temporary slow-down during the episode.
    """

    bias: float
    common: float
    per_tier: float
    overhead: float
    slow_down: float


TRAINING_ERROR = ModelError(bias=0.05, common=0.2, per_tier=0.15, overhead=0.1, slow_down=0.4)
"""Wide: a profile fitted on a busy machine is easily wrong by a quarter."""
NO_ERROR = ModelError(bias=0.0, common=0.0, per_tier=0.0, overhead=0.0, slow_down=0.0)
EVALUATION_ERROR = ModelError(bias=0.0, common=0.15, per_tier=0.1, overhead=0.05, slow_down=0.0)


def true_profile(mesh: Mesh, error: ModelError, rng: np.random.Generator) -> LatencyProfile:
    """Returns costs as they might really be."""
    common = float(np.exp(error.bias + error.common * rng.standard_normal()))
    overhead_s = float(rng.uniform(0.0, error.overhead)) * mesh.deadline_s
    tiers: dict[str, TierProfile] = {}
    for name, tier in mesh.profile.tiers.items():
        scaled = tier.scaled(common * float(np.exp(error.per_tier * rng.standard_normal())))
        tiers[name] = replace(scaled, overhead_s=tier.overhead_s + overhead_s)
    return LatencyProfile(f"{mesh.profile.name}-true", "assumed", tiers)


def _slow_down(
    mesh: Mesh, error: ModelError, duration_s: float, rng: np.random.Generator
) -> tuple[FleetEvent, ...]:
    """Returns a device that turns slow for a while, unknown to routers, or nothing."""
    if rng.random() >= error.slow_down:
        return ()
    device = int(rng.integers(len(mesh.devices)))
    start_s, end_s = np.sort(rng.random(2)) * duration_s
    return (
        FleetEvent(float(start_s), device, "slow", float(rng.uniform(1.1, 1.8))),
        FleetEvent(float(end_s), device, "slow", 1.0),
    )


def held(scenarios: Sequence[Scenario]) -> list[Scenario]:
    """Returns the scenarios with targets held, as routers do unless told otherwise."""
    return [replace(s, config=replace(s.config, hold_targets=True)) for s in scenarios]


def evaluation_scenarios(mesh: Mesh, seeds: Sequence[int], *, requests: int) -> list[Scenario]:
    """Returns fixed scenarios: steady rates, bursts, clumped traffic, stale views, a lost device.

    Args:
        mesh: the mesh.
        seeds: each gives every scenario once more, with other arrivals and other errors of costs.
        requests: per scenario, about.
    """
    scenarios = []
    for seed in seeds:
        rates = mesh.rates(5)
        for index, rate in enumerate(rates):
            rng = np.random.default_rng([seed, index])
            duration_s = max(requests / rate, 12.0 * mesh.deadline_s)
            arrivals = poisson(rate, duration_s, rng)
            scenarios.append(_evaluation(mesh, arrivals, duration_s, rng, f"{rate:.0f} req/s"))
        for index, factor in enumerate((1.5, 3.0)):
            rng = np.random.default_rng([seed, 100 + index])
            base = 0.5 * mesh.large_rps
            burst = min(factor * mesh.large_rps, mesh.max_rate_rps)
            piece_s = max(requests / (base + burst) / 3.0, 8.0 * mesh.deadline_s)
            pieces = [(piece_s, base), (piece_s, burst), (piece_s, base)]
            arrivals = piecewise(pieces, rng)
            scenarios.append(_evaluation(mesh, arrivals, 3 * piece_s, rng, f"burst {factor:g}x"))
        for index, rate in enumerate((rates[1], rates[3])):
            scenarios.extend(_hard_scenarios(mesh, rate, requests, [seed, 200 + index]))
    return scenarios


def skewed_share(mesh: Mesh, task: int) -> list[float]:
    """Returns the shares of the tasks where nearly all requests are of one."""
    tasks = len(mesh.catalog.tasks)
    if tasks == 1:
        return [1.0]
    share = [(1.0 - SKEWED_SHARE) / (tasks - 1)] * tasks
    share[task] = SKEWED_SHARE
    return share


def steady_scenarios(mesh: Mesh, seed: int, requests: int) -> list[Scenario]:
    """Returns fixed scenarios of steady traffic as believed, safety net off.

    An even mix at twelve rates, and nearly one task, each at half of them: where all requests want
    the same tier nothing but the price of its backlog holds them back.
    """
    tasks = len(mesh.catalog.tasks)
    found = []
    for mix, share in enumerate([[1.0] * tasks, *(skewed_share(mesh, t) for t in range(tasks))]):
        for index, rate in enumerate(mesh.rates(12)[:: 2 if mix else 1]):
            rng = np.random.default_rng([seed, mix, index])
            duration_s = max(requests / rate, 12.0 * mesh.deadline_s)
            arrivals = poisson(rate, duration_s, rng)
            scenario = _evaluation(mesh, arrivals, duration_s, rng, f"mix {mix}", share)
            profiles = {"": mesh.profile, TRUE_COSTS: mesh.profile}
            config = replace(scenario.config, profiles=profiles, safety=False)
            found.append(replace(scenario, config=config))
    return found


def _hard_scenarios(mesh: Mesh, rate: float, requests: int, seed: list[int]) -> list[Scenario]:
    """Returns one scenario of each kind that is hard for price, at a mean rate."""
    duration_s = max(requests / rate, 12.0 * mesh.deadline_s)
    peak = min(2.2 * rate, mesh.max_rate_rps)
    found = []
    for index, kind in enumerate(("cv 4", "cv 8", "markov", "stale 2", "stale 4", "loss")):
        rng = np.random.default_rng([*seed, index])
        if kind.startswith("cv"):
            arrivals = gamma_renewal(rate, float(kind[3:]), duration_s, rng)
        elif kind == "markov":
            arrivals = markov_modulated(
                [0.3 * rate, rate, peak], 5.0 * mesh.deadline_s, duration_s, rng
            )
        else:
            arrivals = poisson(rate, duration_s, rng)
        scenario = _evaluation(mesh, arrivals, duration_s, rng, f"{kind} at {rate:.0f} req/s")
        config = scenario.config
        if kind.startswith("stale"):
            config = replace(
                config,
                routers=int(kind[6:]),
                staleness_s=1.25 * mesh.deadline_s,
                report_interval_s=0.125 * mesh.deadline_s,
            )
        elif kind == "loss":
            if len(mesh.devices) < 2:
                continue
            lost = FleetEvent(0.3 * duration_s, 0, "lost")
            config = replace(config, events=(lost, FleetEvent(0.8 * duration_s, 0, "back")))
        found.append(replace(scenario, config=config))
    return found


def _evaluation(
    mesh: Mesh,
    arrivals: Times,
    duration_s: float,
    rng: np.random.Generator,
    name: str,
    task_share: Sequence[float] = (),
) -> Scenario:
    workload = make_workload(
        arrivals,
        duration_s,
        rng=rng,
        deadline_s=mesh.deadlines(mesh.deadline_s),
        task_share=task_share or [1.0] * len(mesh.catalog.tasks),
        lengths=mesh.lengths,
        name=name,
    )
    profiles = {"": mesh.profile, TRUE_COSTS: true_profile(mesh, EVALUATION_ERROR, rng)}
    config = SimulationConfig(
        fleet=mesh.fleet, catalog=mesh.catalog, profiles=profiles, safety=True
    )
    return Scenario(config, workload, int(rng.integers(2**31)))


def _arrivals(
    rate: float, high: float, duration_s: float, deadline_s: float, rng: np.random.Generator
) -> Times:
    """Returns arrivals of a random kind around `rate`."""
    kind = rng.random()
    if kind < 0.4:
        return poisson(rate, duration_s, rng)
    if kind < 0.58:
        burst = min(rate * float(rng.uniform(2.0, 6.0)), high)
        # From quiet to burst and back, at random moments, so that every phase is met in each state.
        cuts = np.sort(rng.random(2)) * duration_s
        spans = np.diff([0.0, *cuts, duration_s])
        return piecewise([(spans[0], rate), (spans[1], burst), (spans[2], rate)], rng)
    if kind < 0.82:
        cv = float(np.exp(rng.uniform(math.log(1.5), math.log(9.0))))
        return gamma_renewal(rate, cv, duration_s, rng)
    rates = [rate * 0.3, rate, min(2.2 * rate, high)]
    return markov_modulated(rates, float(rng.uniform(1.0, 10.0)) * deadline_s, duration_s, rng)


def _placement(
    profile: LatencyProfile, devices: int | Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], ...]:
    if isinstance(devices, int):
        if devices < 1:
            raise ScenarioError(f"devices must be at least 1 (got {devices})")
        return (tuple(profile.tiers),) * devices
    placed = tuple(tuple(tiers) for tiers in devices)
    unknown = {tier for tiers in placed for tier in tiers if tier not in profile.tiers}
    if not placed or not all(placed):
        raise ScenarioError("devices: at least one with at least one tier is needed")
    if unknown:
        known = ", ".join(profile.tiers)
        raise ScenarioError(f"devices: unknown tiers {sorted(unknown)}; the profile has {known}")
    return placed


def _fleet(catalog: Catalog, profile: LatencyProfile, placed: tuple[tuple[str, ...], ...]) -> Fleet:
    """Returns the fleet with the costs that routers believe; its endpoints name the true ones."""
    endpoints = [
        EndpointSpec(
            name=f"e{index}",
            address="127.0.0.1:1",
            device=f"d{index}",
            models={tier: tier for tier in tiers},
            profile=TRUE_COSTS,
        )
        for index, tiers in enumerate(placed)
    ]
    profiles: Mapping[str, LatencyProfile] = {"": profile, TRUE_COSTS: profile}
    return build_fleet(catalog, endpoints, profiles)


def mean_scores(
    performance_S: NDArray[np.float64], availability_S: NDArray[np.float64]
) -> dict[str, float]:
    """Returns mean and worst scores over scenarios."""
    return {
        "performance": float(performance_S.mean()),
        "availability": float(availability_S.mean()),
        "availability_min": float(availability_S.min()),
    }
