"""The same requests through a live mesh and through the simulator, side by side.

Arrivals, tasks and the lengths of prompts and answers of a run are a function of its seed, live and
simulated alike; so is what each policy knows. Time is stretched by one factor on both sides, so
that the machine carries the mesh.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.dqn.snapshot import Snapshot
from router.folders import checkout
from router.policies.table import make_policy
from services.live.mesh import ALLOWANCE_S, StretchedMesh
from services.live.run import Measured, run_policy
from services.live.simulated import simulation_config, stretched_setting, workload_of
from services.loadgen.records import LATE, ON_TIME, run_summary, summarize
from services.loadgen.spec import DRAWN, LoadSpec, LoadSpecError, parse_spec
from services.local.embedded import EmbeddedMesh
from services.local.paced_mesh import DEADLINE_S
from trainer.evaluation import facts
from trainer.simulation.setting import unit_rate_rps
from trainer.simulation.simulate import PolicySpec, simulate
from trainer.simulation.state import ANSWERED, CANCELLED

LEAST_SCALE = 5.0
"""Least factor on time unless one is given: a hop takes milliseconds, whatever the tiers' clock."""
MOST_RPS = 150.0
"""Arrivals per second on this machine up to which time is stretched unless a factor is given."""
WARM_UP_DEADLINES = 2.5
"""Left out at the start of a run: routers have no estimate of the rate yet."""
LEAST_DEADLINES = 2.5
"""A run counts at least so many deadlines, however far time is stretched."""
MOST_LATENCY_ERROR, MOST_SCORE_ERROR = 0.05, 0.02
"""What the simulator may be off: mean latency, relative; availability and performance, absolute."""
LEAST_REQUESTS = 20
"""Of fewer requests no share says anything; a plan with such a run is refused."""
WARM_UP, RUN = "warm-up", "run"
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to compare.

    Attributes:
        profile: Latency profile of the tiers.
        quality: Quality table.
        snapshot: File of the learned policy's snapshot; None: there is none.
        policies: By name.
        loads: Multiples of about what the largest tier holds by itself.
        devices: Each with every tier.
        routers: Router processes.
        seeds: Runs of each policy at each load, on other requests.
        seconds: Length of what counts of a run, on this machine.
        time_scale: Factor on every time; 0: what each load needs.
        cpu_limit: Share of the machine's CPU time above which a point does not count.
    """

    profile: pathlib.Path
    quality: pathlib.Path
    snapshot: pathlib.Path | None
    policies: tuple[str, ...]
    loads: tuple[float, ...]
    devices: int
    routers: int
    seeds: int
    seconds: float
    time_scale: float
    cpu_limit: float

    def mesh(self, time_scale: float = 1.0) -> StretchedMesh:
        """Returns the mesh in stretched time."""
        return StretchedMesh(
            "evaluate-live", self.profile, self.quality, self.snapshot, self.devices, self.routers,
            time_scale,
        )  # fmt: skip

    def scale(self, rate_rps: float) -> float:
        """Factor on every time at a rate of the profile's own time, requests per second."""
        return self.time_scale or max(LEAST_SCALE, math.ceil(rate_rps / MOST_RPS))

    def spec(
        self,
        addresses: Sequence[str],
        tasks: Sequence[str],
        scale: float,
        rate_rps: float,
        seed: int,
    ) -> LoadSpec:
        """Returns a run's requests: a function of the seed, whichever the policy.

        Raises:
            LoadSpecError: There are too many, or the run is too long.
        """
        deadline_s = DEADLINE_S * scale
        run_s = max(self.seconds, LEAST_DEADLINES * deadline_s)
        phases = ((WARM_UP, WARM_UP_DEADLINES * deadline_s), (RUN, run_s))
        return parse_spec(
            {
                "router_addresses": list(addresses),
                "phases": [
                    {"name": name, "duration_s": length_s, "rate_rps": rate_rps / scale}
                    for name, length_s in phases
                ],
                "deadline_s": deadline_s,
                "task_mix": dict.fromkeys(tasks, 1.0),
                "prompt_tokens": DRAWN,
                "seed": seed,
                "network_allowance_s": min(1.0, ALLOWANCE_S * scale),
            },
            "live evaluation",
        )


@dataclasses.dataclass(frozen=True)
class Scores:
    """What one side made of a run, its warm-up left out.

    Attributes:
        requests: How many were offered.
        mean_s: Mean latency of what was answered or cut off at its deadline, in the profile's own
            time, seconds; NaN if nothing was.
        p99_s: 99th percentile of the same.
        availability: Share of offered requests answered on time.
        performance: Mean over offered requests of quality x on-time.
        mix: Share of each tier among the answers.
    """

    requests: int
    mean_s: float
    p99_s: float
    availability: float
    performance: float
    mix: dict[str, float]

    def facts(self) -> dict[str, Any]:
        """Returns them JSON-ready: a latency of nothing is none."""
        own = dataclasses.asdict(self)
        return own | {"mean_s": known(self.mean_s), "p99_s": known(self.p99_s)}


@dataclasses.dataclass(frozen=True)
class LiveRun:
    """A policy's run on the mesh, to be had again in the simulator.

    Attributes:
        load: Multiple of the unit.
        rate_rps: Requests per second of the profile's own time.
        time_scale: Factor on every time.
        policy: Its name.
        seed: Of the requests.
        spec: The requests.
        measured: What the mesh made of them.
    """

    load: float
    rate_rps: float
    time_scale: float
    policy: str
    seed: int
    spec: LoadSpec
    measured: Measured


def rates_rps(plan: Plan) -> dict[float, float]:
    """Returns the rate of each load, requests per second of the profile's own time."""
    unit_rps = unit_rate_rps(stretched_setting(plan.mesh()))
    return {load: load * unit_rps for load in plan.loads}


def problem_of(plan: Plan, rate_rps: float) -> str:
    """Returns why a rate cannot be run, empty if it can."""
    scale = plan.scale(rate_rps)
    try:
        for seed in range(plan.seeds):
            spec = plan.spec(("127.0.0.1:1",), ("any",), scale, rate_rps, seed)
            arrivals = spec.arrivals()
            names = [phase.name for phase in arrivals.phases]
            count = int(np.sum(arrivals.phase_index == names.index(RUN)))
            if count < LEAST_REQUESTS:
                return (
                    f"a run of {arrivals.phases[-1].duration_s:g} s here has {count} requests, and "
                    f"needs {LEAST_REQUESTS}: give more --seconds or a higher load"
                )
    except LoadSpecError as error:
        return str(error)
    return ""


async def evaluate_live(plan: Plan, snapshot: Snapshot | None, say: Say) -> dict[str, Any]:
    """Runs everything live, then in the simulator; returns the report, JSON-ready.

    Raises:
        CommandError: A mesh did not start, or a process of it has ended.
        LoadProcessError: The load generator failed.
    """
    started, start_s = facts.now(), time.monotonic()
    runs = await run_live(plan, say)
    say("the same requests in the simulator")
    points = [
        point(plan, run, await asyncio.to_thread(simulated, plan, run, snapshot)) for run in runs
    ]
    return {
        "started": started,
        "took_s": round(time.monotonic() - start_s, 1),
        "commit": facts.commit(checkout()),
        "machine": facts.machine(),
        "plan": {
            name: str(value) if isinstance(value, pathlib.Path) else value
            for name, value in dataclasses.asdict(plan).items()
        },
        "tiers": list(plan.mesh().options().fleet.tiers),
        "unit_rps": unit_rate_rps(stretched_setting(plan.mesh())),
        "limits": {"mean": MOST_LATENCY_ERROR, "scores": MOST_SCORE_ERROR},
        "points": points,
    }


async def run_live(plan: Plan, say: Say) -> list[LiveRun]:
    """Runs every policy at every load on live meshes, one mesh after the other.

    Raises:
        CommandError: A mesh did not start, or a process of it has ended.
        LoadProcessError: The load generator failed.
    """
    rates = rates_rps(plan)
    runs: list[LiveRun] = []
    for scale in dict.fromkeys(plan.scale(rate_rps) for rate_rps in rates.values()):
        say(f"time x{scale:g}: starting the mesh")
        async with EmbeddedMesh(plan.mesh(scale).options(), say=say) as mesh:
            await mesh.start_backends()
            await mesh.start_services()
            for load, rate_rps in rates.items():
                if plan.scale(rate_rps) == scale:
                    runs += await _at_load(mesh, plan, load, rate_rps, scale, say)
    return runs


async def _at_load(
    mesh: EmbeddedMesh, plan: Plan, load: float, rate_rps: float, scale: float, say: Say
) -> list[LiveRun]:
    runs = []
    tasks = [task.name for task in mesh.options.tasks]
    for seed in range(plan.seeds):
        spec = plan.spec(mesh.router_addresses, tasks, scale, rate_rps, seed)
        for policy in plan.policies:
            say(f"load {load:g}x, {rate_rps / scale:.0f} requests/s here, {policy}")
            measured = await run_policy(mesh, policy, spec)
            runs.append(LiveRun(load, rate_rps, scale, policy, seed, spec, measured))
    return runs


def simulated(plan: Plan, run: LiveRun, snapshot: Snapshot | None) -> Scores:
    """Has the simulator answer the requests of a run."""
    mesh = plan.mesh(run.time_scale)
    setting = stretched_setting(mesh)
    policy = PolicySpec.of(make_policy(run.policy, setting.catalog, snapshot=snapshot))
    workload = workload_of(run.spec, setting)
    result = simulate(simulation_config(mesh, setting), workload, policy, run.seed)
    offered_N = result.observed(WARM_UP_DEADLINES * mesh.deadline_s)
    answered_N = offered_N & (result.status_N == ANSWERED)
    timed_N = answered_N | (offered_N & (result.status_N == CANCELLED))
    tier_T = np.bincount(result.tier_N[answered_N], minlength=len(setting.fleet.tiers))
    return _scores(
        result.latency_N[timed_N] / run.time_scale,
        requests=int(offered_N.sum()),
        availability=float(result.on_time_N[offered_N].mean()),
        performance=float(result.reward_N[offered_N].mean()),
        mix=dict(zip(setting.fleet.tiers, tier_T / max(1, tier_T.sum()), strict=True)),
    )


def live(run: LiveRun) -> Scores:
    """Returns what the mesh made of a run."""
    counted = run.measured.records.phase(RUN)
    total, status_N = summarize(counted), counted.columns["status"]
    latency_N = counted.columns["latency_s"].astype(np.float64)
    return _scores(
        latency_N[(status_N == ON_TIME) | (status_N == LATE)] / run.time_scale,
        requests=total["offered"],
        availability=total["availability"],
        performance=total["performance"],
        mix=total["mix"],
    )


def _scores(latency_N: NDArray[np.float64], **others: Any) -> Scores:
    if not len(latency_N):
        return Scores(mean_s=math.nan, p99_s=math.nan, **others)
    return Scores(
        mean_s=float(latency_N.mean()), p99_s=float(np.quantile(latency_N, 0.99)), **others
    )


def point(plan: Plan, run: LiveRun, simulated_scores: Scores) -> dict[str, Any]:
    """Returns a run's row, JSON-ready: both sides, the error, and whether it counts."""
    here, there, measured = live(run), simulated_scores, run.measured
    lag_p99_ms = run_summary(measured.records)["generator_lag_p99_ms"]
    why_not = []
    if measured.machine_busy > plan.cpu_limit:
        why_not.append(f"machine {measured.machine_busy:.0%} busy")
    if not measured.records.is_valid:
        why_not.append("load generator lagged")
    error = {
        "mean": known(here.mean_s / there.mean_s - 1.0 if there.mean_s > 0.0 else math.nan),
        "p99": known(here.p99_s / there.p99_s - 1.0 if there.p99_s > 0.0 else math.nan),
        "availability": here.availability - there.availability,
        "performance": here.performance - there.performance,
    }
    return {
        "load": run.load,
        "rate_rps": run.rate_rps,
        "time_scale": run.time_scale,
        "policy": run.policy,
        "seed": run.seed,
        "live": here.facts(),
        "simulated": there.facts(),
        "error": error,
        "within": is_within(error),
        "counts": not why_not,
        "why_not": ", ".join(why_not),
        "machine_busy": measured.machine_busy,
        "cores": {name: round(value, 3) for name, value in measured.cores.items()},
        "loop_lag_ms": 1e3 * measured.loop_lag_s,
        "generator_lag_p99_ms": lag_p99_ms,
        "policy_versions": list(measured.records.names["policy_version"]),
    }


def known(value: float) -> float | None:
    """Returns a number for JSON, which has no NaN."""
    return value if math.isfinite(value) else None


def is_within(error: Mapping[str, float | None]) -> bool:
    """Returns whether the simulator was as near as it should be."""
    mean = error["mean"]
    scores = error["availability"], error["performance"]
    return (
        mean is not None
        and abs(mean) <= MOST_LATENCY_ERROR
        and all(each is not None and abs(each) <= MOST_SCORE_ERROR for each in scores)
    )
