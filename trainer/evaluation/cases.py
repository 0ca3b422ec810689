"""Cases: one workload in one world, run under every policy, with the safety net off and on.

All policies of a case answer the very same requests, so their differences are paired.

Shape letters: N requests, T tiers, W windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from router import smooth
from trainer.bound.performance import performance_bound, window_bounds
from trainer.evaluation.jobs import Context
from trainer.evaluation.scenarios import SCENARIOS, WARM_UP_S
from trainer.evaluation.seeds import stream
from trainer.simulation.setting import Setting
from trainer.simulation.simulate import FleetEvent, SimulationConfig, SimulationResult, simulate
from trainer.simulation.state import ANSWERED
from trainer.simulation.workload import Workload
from trainer.traces.resample import trace_workload

WINDOW_S = 10.0
LATENESS_DECAY_S = smooth.DECAY_S
"""Smooth goodput: an answer late by this much counts 1/e."""
TRACE_PREFIX = "trace:"


@dataclass(frozen=True)
class Case:
    """One workload in one world.

    Attributes:
        suite: part of the protocol.
        label: row of its table: a scenario, a shift.
        load: offered rate as a multiple of what static-large holds.
        rate_rps: offered rate.
        seed: evaluation seed.
        duration_s: length of the run, warm-up included, seconds.
        policies: names in the context.
        scenario: name in SCENARIOS, or "trace:" and a name in the context.
        setting: name in the context.
        nets: with the safety net off, on, or both.
        routers: number of routers.
        staleness_s: age of what a router sees of the others, seconds.
        events: what happens to devices.
        requests_of: label whose requests are used, for rows that are compared in pairs; empty: own.
        windowed: keep the performance of every window of WINDOW_S.
        bounded: compute the bound: of the run or, if windowed, of each window.
    """

    suite: str
    label: str
    load: float
    rate_rps: float
    seed: int
    duration_s: float
    policies: tuple[str, ...]
    scenario: str = "poisson"
    setting: str = ""
    nets: tuple[bool, ...] = (False, True)
    routers: int = 1
    staleness_s: float = 0.0
    events: tuple[FleetEvent, ...] = ()
    requests_of: str = ""
    windowed: bool = False
    bounded: bool = True

    @property
    def cost(self) -> float:
        """Simulated requests, about."""
        return self.rate_rps * self.duration_s * len(self.policies) * len(self.nets)

    def run(self, context: Context) -> CaseResult:
        """Runs every policy over the case's requests."""
        workload = self.workload(context)
        setting = context.settings[self.setting]
        bound, bound_W = None, np.zeros(0)
        world = self.config(setting, safety=True)
        if self.bounded and self.windowed:
            bound_W = window_bounds(world, workload, WINDOW_S, warm_up_s=WARM_UP_S)
        elif self.bounded:
            bound = performance_bound(world, workload, warm_up_s=WARM_UP_S)
        outcomes = {}
        for name in self.policies:
            for net in self.nets:
                config = self.config(setting, safety=net)
                result = simulate(config, workload, context.policies[name], self.seed)
                outcomes[name, net] = outcome_of(result, len(setting.fleet.tiers), self.windowed)
        return CaseResult(self, outcomes, bound, bound_W)

    def config(self, setting: Setting, *, safety: bool) -> SimulationConfig:
        """Returns what is simulated beside workload and policy."""
        return replace(
            setting.config(safety=safety),
            routers=self.routers,
            staleness_s=self.staleness_s,
            events=self.events,
        )

    def workload(self, context: Context) -> Workload:
        """Returns the requests: a function of scenario, rate, seed and what the rng is for."""
        setting = context.settings[self.setting]
        purpose = f"{self.suite}/{self.requests_of or self.label}/{self.load:.6g}"
        rng = stream(self.seed, purpose)
        if self.scenario.startswith(TRACE_PREFIX):
            model = context.traces[self.scenario.removeprefix(TRACE_PREFIX)]
            return trace_workload(
                model, setting, self.rate_rps, duration_s=self.duration_s, rng=rng
            )
        arrival_N = SCENARIOS[self.scenario].make(self.rate_rps, self.duration_s, rng)
        return setting.workload(arrival_N, self.duration_s, rng)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one policy made of a case.

    Attributes:
        availability: share answered on time.
        performance: mean reward.
        p50_s: median latency of answered requests, seconds; NaN if none was.
        p99_s: its 99th percentile, seconds.
        goodput_rps: answers on time per second.
        smooth_goodput_rps: answers per second, a late one counted exp(-lateness / decay).
        tier_T: share of offered requests answered per tier.
        window_W: mean reward per window, NaN for an empty one; empty unless asked for.
    """

    availability: float
    performance: float
    p50_s: float
    p99_s: float
    goodput_rps: float
    smooth_goodput_rps: float
    tier_T: NDArray[np.float64]
    window_W: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """A case and what came of it.

    Attributes:
        case: the case.
        outcomes: by policy and safety net.
        bound: performance no policy can exceed on these requests; None if not computed.
        bound_W: the same for each window by itself; empty if not computed.
    """

    case: Case
    outcomes: Mapping[tuple[str, bool], Outcome]
    bound: float | None
    bound_W: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


def outcome_of(result: SimulationResult, tier_count: int, windowed: bool) -> Outcome:
    """Returns the outcome of a run, its warm-up left out.

    Smooth goodput after arXiv 2410.14257, by what each deadline is for: the first token, the whole
    answer, or each token, of which the first and the last one then speak for all.
    Where deadlines are hard late work is cancelled, but for streams, and it equals goodput.
    """
    observed_N = result.observed(WARM_UP_S)
    answered_N = observed_N & (result.status_N == ANSWERED)
    latency_N = result.latency_N[answered_N]
    late_N = result.late_s_N[answered_N]
    quantiles = np.quantile(latency_N, [0.5, 0.99]) if len(latency_N) else (math.nan, math.nan)
    span_s = max(result.workload.duration_s - WARM_UP_S, 1e-9)
    return Outcome(
        result.availability(WARM_UP_S),
        result.performance(WARM_UP_S),
        float(quantiles[0]),
        float(quantiles[1]),
        float(result.on_time_N[observed_N].sum()) / span_s,
        float(np.exp(-late_N / LATENESS_DECAY_S).sum()) / span_s,
        result.tier_share(tier_count, WARM_UP_S),
        result.windows(WINDOW_S, WARM_UP_S) if windowed else np.zeros(0),
    )
