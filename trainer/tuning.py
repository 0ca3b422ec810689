"""Tuning of hand-made policies in the simulator by CMA-ES, so that the comparison is fair.

A policy's parameters are moved within the ranges its table states, scaled to [0, 1]. The score of a
candidate is its mean over cases of performance / fluid reference, less a penalty for availability
below what counts as holding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cma
import numpy as np
from numpy.typing import NDArray

from router.policies.registry import SCORE_POLICIES
from trainer.evaluation import HOLDS, SCENARIOS, Setting, fluid_reference, with_routers
from trainer.simulation.simulate import KINDS, PolicySpec, SimulationConfig, simulate
from trainer.simulation.workload import Workload

PENALTY = 3.0
"""Score lost per unit of availability below HOLDS."""


@dataclass(frozen=True)
class TuningCase:
    """One simulation of the score.

    Attributes:
        config: what is simulated.
        workload: its requests.
        reference: performance of the fluid reference.
        weight: in the mean.
        seed: of the simulation.
    """

    config: SimulationConfig
    workload: Workload
    reference: float
    weight: float
    seed: int


def make_case(
    setting: Setting,
    rate_rps: float,
    *,
    seed: int,
    scenario: str = "poisson",
    requests: int = 6000,
    routers: int = 1,
    staleness_s: float = 0.0,
    weight: float = 1.0,
    safety: bool = False,
) -> TuningCase:
    """Returns a case of about `requests` requests, 3 to 12 s long."""
    duration_s = float(np.clip(requests / rate_rps, 3.0, 12.0))
    rng = np.random.default_rng([seed, 9])
    arrival_N = SCENARIOS[scenario].make(rate_rps, duration_s, rng)
    workload = setting.workload(arrival_N, duration_s, rng)
    config = with_routers(setting.config(safety=safety), routers, staleness_s)
    return TuningCase(config, workload, fluid_reference(setting, rate_rps), weight, seed)


def score(policy: PolicySpec, cases: Sequence[TuningCase], warm_up_s: float = 0.5) -> float:
    """Returns the weighted mean score; 1 is the fluid reference at every load."""
    total = 0.0
    for case in cases:
        result = simulate(case.config, case.workload, policy, case.seed)
        missing = max(0.0, HOLDS - result.availability(warm_up_s))
        value = result.performance(warm_up_s) / case.reference - PENALTY * missing
        total += case.weight * value
    return total / sum(case.weight for case in cases)


def tune(
    policy: str,
    cases: Sequence[TuningCase],
    *,
    evaluations: int,
    seed: int,
    start: dict[str, float] | None = None,
    step: float = 0.12,
    progress: Callable[[int, float, dict[str, float]], None] | None = None,
) -> tuple[dict[str, float], float]:
    """Returns the best parameters found and their score.

    Args:
        policy: name of a policy with parameters.
        cases: what the score runs.
        evaluations: budget, number of scores.
        seed: of CMA-ES.
        start: parameters to start from; what is left out starts at its default.
        step: first step, as a share of each range.
        progress: told evaluations done, best score, best parameters, once per generation.

    Raises:
        LookupError: the policy has no parameters to tune.
    """
    kind = KINDS.get(policy)
    table = SCORE_POLICIES[policy].PARAMETERS if policy in SCORE_POLICIES else ()
    if kind is None or not table:
        known = ", ".join(name for name, cls in SCORE_POLICIES.items() if cls.PARAMETERS)
        raise LookupError(f"policy {policy!r} has no parameters to tune; those that do: {known}")
    low_P = np.array([p.low for p in table])
    span_P = np.array([p.high for p in table]) - low_P
    first_P = np.array([(start or {}).get(p.name, p.default) for p in table])

    def named(unit_P: NDArray[np.float64]) -> dict[str, float]:
        return {p.name: float(v) for p, v in zip(table, low_P + span_P * unit_P, strict=True)}

    def loss(unit_P: NDArray[np.float64]) -> float:
        return -score(PolicySpec(kind, np.append(low_P + span_P * unit_P, 0.0)), cases)

    if len(table) == 1:  # CMA-ES needs two dimensions; a scan does for one
        units = np.linspace(0.02, 0.98, evaluations)
        values = [-loss(np.array([u])) for u in units]
        top = int(np.argmax(values))
        return named(np.array([units[top]])), values[top]
    options = {"bounds": [0.0, 1.0], "maxfevals": evaluations, "seed": seed, "verbose": -9}
    search = cma.CMAEvolutionStrategy((first_P - low_P) / span_P, step, options)
    while not search.stop():
        asked = search.ask()
        search.tell(asked, [loss(np.asarray(unit_P)) for unit_P in asked])
        if progress is not None:
            best_P = np.asarray(search.result.xbest)
            progress(search.result.evaluations, -float(search.result.fbest), named(best_P))
    # The mean of the last population is less of a lucky draw than its best member.
    favourite_P = np.clip(np.asarray(search.result.xfavorite), 0.0, 1.0)
    return named(favourite_P), -loss(favourite_P)
