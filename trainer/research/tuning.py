"""Tuning of hand-made policies in the simulator by CMA-ES, so that the comparison is fair.

    python -m trainer.research.tuning all --requests 20000000 --seed 1

A policy's parameters are moved within the ranges its table states, scaled to [0, 1]. The score of a
candidate is its mean over cases of performance / fluid reference, less a penalty for availability
below what counts as holding. Every policy gets the same cases (steady rates over the whole range,
gamma gaps of CV 4 and 8, Markov-modulated rates; safety net off and on) and the same budget,
counted in simulated requests as a learner's is. The streams are two-word seeds, which evaluation
never uses (`trainer/evaluation/seeds.py`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cma
import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from router.catalog import QualityTable, parse_quality
from router.dqn.snapshot import SnapshotError
from router.policies.base import Parameter
from router.policies.table import BY_HAND, BY_NAME, MissingSnapshotError
from router.profile import LatencyProfile, parse_profile
from router.types import InvalidFileError, Task, UnknownPolicyError
from trainer.evaluation.fluid import fluid_reference
from trainer.evaluation.scenarios import SCENARIOS
from trainer.simulation.scenarios import default_lengths
from trainer.simulation.setting import (
    HOLDS,
    Setting,
    full_rate_rps,
    shared_fleet_setting,
    unit_rate_rps,
    with_routers,
)
from trainer.simulation.simulate import PolicySpec, SimulationConfig, simulate
from trainer.simulation.workload import Workload

PENALTY = 3.0
"""Score lost per unit of availability below HOLDS."""

BUDGET_REQUESTS = 20_000_000
"""Simulated requests a policy is tuned with."""

STEADY_LOADS = (0.25, 0.5, 0.8, 1.1, 1.6, 2.5, 4.0, 7.0, 12.0, 18.0, 24.0)
BURSTY_LOADS = (0.7, 1.6, 4.0, 10.0)
"""Loads of the cases, as multiples of what the largest tier holds alone."""

BURSTY = ("gamma-cv4", "gamma-cv8", "markov")
HIGHEST_SHARE = 0.95
"""No case goes beyond this share of what the smallest tier carries in full batches."""

FIRST_STEP = 0.15
"""First step of the search, as a share of each parameter's range."""
SPREAD_SHARE = 0.15
"""Share of the budget that is spread over the whole space before the search."""
LUCK = 0.003
"""A single point must beat the population's mean by this much not to count as a lucky draw."""

Progress = Callable[[int, float, dict[str, float]], None]
"""Told scores computed, best score, its parameters."""


class TuningError(ValueError):
    """A policy cannot be tuned, or not with this budget; the message says what is possible."""


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


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        policy: its name.
        parameters: the best ones.
        score: their score on the cases.
        default_score: score of the defaults on the same cases.
        evaluations: scores computed.
        requests: requests simulated for them.
        seed: of cases and search.
    """

    policy: str
    parameters: Mapping[str, float]
    score: float
    default_score: float
    evaluations: int
    requests: int
    seed: int = field(default=0)


def make_case(
    setting: Setting,
    rate_rps: float,
    *,
    seed: int,
    scenario: str = "poisson",
    requests: int = 6000,
    shortest_s: float = 3.0,
    longest_s: float = 12.0,
    routers: int = 1,
    staleness_s: float = 0.0,
    weight: float = 1.0,
    safety: bool = False,
    reference: float | None = None,
) -> TuningCase:
    """Returns a case of about `requests` requests, within the lengths given.

    The reference is computed unless given.
    """
    duration_s = float(np.clip(requests / rate_rps, shortest_s, longest_s))
    rng = np.random.default_rng([seed, 9])
    arrival_N = SCENARIOS[scenario].make(rate_rps, duration_s, rng)
    workload = setting.workload(arrival_N, duration_s, rng)
    config = with_routers(setting.config(safety=safety), routers, staleness_s)
    if reference is None:
        reference = fluid_reference(setting, rate_rps)
    return TuningCase(config, workload, reference, weight, seed)


def tuning_cases(setting: Setting, seed: int) -> list[TuningCase]:
    """Returns the cases every policy is tuned on: steady and bursty, safety net off and on.

    Loads that not even the smallest tier could carry are left out.
    """
    unit_rps = unit_rate_rps(setting)
    plan = [("poisson", load) for load in STEADY_LOADS]
    plan += [(scenario, load) for load in BURSTY_LOADS for scenario in BURSTY]
    highest = HIGHEST_SHARE * full_rate_rps(setting, largest=False) / unit_rps
    plan = [(scenario, load) for scenario, load in plan if load <= highest]
    references = {load: fluid_reference(setting, load * unit_rps) for _, load in plan}
    return [
        make_case(
            setting,
            load * unit_rps,
            seed=1000 * seed + index,
            scenario=scenario,
            requests=1500,
            shortest_s=2.0 if scenario == "poisson" else 4.0,
            longest_s=20.0,
            safety=bool(index % 2),
            reference=references[load],
        )
        for index, (scenario, load) in enumerate(plan)
    ]


def score(policy: PolicySpec, cases: Sequence[TuningCase], warm_up_s: float = 0.5) -> float:
    """Returns the weighted mean score; 1 is the fluid reference at every load."""
    total = 0.0
    for case in cases:
        result = simulate(case.config, case.workload, policy, case.seed)
        missing = max(0.0, HOLDS - result.availability(warm_up_s))
        value = result.performance(warm_up_s) / case.reference - PENALTY * missing
        total += case.weight * value
    return total / sum(case.weight for case in cases)


def tunable_policies() -> tuple[str, ...]:
    """Returns the names of policies with parameters."""
    return tuple(name for name in BY_HAND if BY_NAME[name].parameters)


def tune(
    policy: str,
    cases: Sequence[TuningCase],
    *,
    evaluations: int,
    seed: int,
    start: Mapping[str, float] | None = None,
    step: float = FIRST_STEP,
    progress: Progress | None = None,
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
        TuningError: the policy has no parameters to tune.
    """
    search = _Search(policy, cases, start)
    best_P = search.run(evaluations, seed, step, progress)
    return search.named(best_P), search.score_of(best_P)


class _Search:
    """A policy's parameters scaled to [0, 1], and their loss."""

    def __init__(
        self, policy: str, cases: Sequence[TuningCase], start: Mapping[str, float] | None
    ) -> None:
        if policy not in tunable_policies():
            raise TuningError(
                f"policy {policy!r} has no parameters to tune; those that do: "
                f"{', '.join(tunable_policies())}"
            )
        self.table: tuple[Parameter, ...] = BY_NAME[policy].parameters
        self._policy = policy
        self._losses: dict[bytes, float] = {}
        self._cases = cases
        self._low_P = np.array([p.low for p in self.table])
        self._span_P = np.array([p.high for p in self.table]) - self._low_P
        given = start or {}
        first_P = np.array([given.get(p.name, p.default) for p in self.table])
        self.first_P = (first_P - self._low_P) / self._span_P

    def named(self, unit_P: NDArray[np.float64]) -> dict[str, float]:
        value_P = self._low_P + self._span_P * unit_P
        return {p.name: float(v) for p, v in zip(self.table, value_P, strict=True)}

    def loss(self, unit_P: NDArray[np.float64]) -> float:
        key = unit_P.tobytes()
        if key not in self._losses:
            params_P = np.append(self._low_P + self._span_P * unit_P, 0.0)
            self._losses[key] = -score(PolicySpec(self._policy, params_P), self._cases)
        return self._losses[key]

    def score_of(self, unit_P: NDArray[np.float64]) -> float:
        return -self.loss(unit_P)

    @property
    def evaluations(self) -> int:
        """Number of scores computed."""
        return len(self._losses)

    def run(
        self, evaluations: int, seed: int, step: float, progress: Progress | None
    ) -> NDArray[np.float64]:
        """Returns the best point found within the budget."""
        if len(self.table) == 1:  # CMA-ES needs two dimensions; a scan does for one
            points = [self.first_P, *np.linspace(0.0, 1.0, evaluations - 1)[:, None]]
            return min(points, key=self.loss)
        # A score can be flat around the defaults: the search starts at the best of a spread.
        spread = max(1, round(SPREAD_SHARE * evaluations))
        sampler = qmc.Sobol(len(self.table), scramble=True, seed=seed)
        drawn = sampler.random_base2(math.ceil(math.log2(max(2, spread))))
        first_P = min([self.first_P, *drawn[: spread - 1]], key=self.loss)
        left = evaluations - self.evaluations - 1
        options = {"bounds": [0.0, 1.0], "maxfevals": left, "seed": seed, "verbose": -9}
        strategy = cma.CMAEvolutionStrategy(first_P, step, options)
        while not strategy.stop() and self.evaluations + strategy.popsize < evaluations:
            asked = [np.clip(unit_P, 0.0, 1.0) for unit_P in strategy.ask()]
            strategy.tell(asked, [self.loss(unit_P) for unit_P in asked])
            if progress is not None:
                best_P = np.asarray(strategy.result.xbest)
                progress(self.evaluations, self.score_of(best_P), self.named(best_P))
        # The mean of the last population is less of a lucky draw than the best point met.
        favourite_P: NDArray[np.float64] = np.clip(strategy.result.xfavorite, 0.0, 1.0)
        met: list[NDArray[np.float64]] = [first_P, np.asarray(strategy.result.xbest)]
        lucky_P = min(met, key=self.loss)
        return lucky_P if self.loss(lucky_P) < self.loss(favourite_P) - LUCK else favourite_P


def tune_within(
    policy: str,
    cases: Sequence[TuningCase],
    *,
    requests: int,
    seed: int,
    progress: Progress | None = None,
) -> Tuned:
    """Tunes a policy with a budget of simulated requests, from the defaults.

    Raises:
        TuningError: the policy has no parameters, or the budget is below ten scores.
    """
    per_score = sum(len(case.workload) for case in cases)
    evaluations = requests // per_score
    if evaluations < 10:
        raise TuningError(
            f"requests must be at least {10 * per_score}, ten scores (got {requests})"
        )
    search = _Search(policy, cases, None)
    best_P = search.run(evaluations, seed, FIRST_STEP, progress)
    return Tuned(
        policy,
        search.named(best_P),
        search.score_of(best_P),
        search.score_of(search.first_P),
        search.evaluations,
        search.evaluations * per_score,
        seed,
    )


def add_profile_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name a profile and its qualities."""
    parser.add_argument("--profile", type=Path, default=Path("profiles/opt-a100.toml"))
    parser.add_argument("--quality", type=Path, default=Path("quality/opt.toml"))


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name a setting; the defaults are those of the evaluation."""
    add_profile_options(parser)
    parser.add_argument("--devices", type=int, default=4, help="devices with every tier")
    parser.add_argument("--deadline-s", type=float, default=0.4)


def profile_of(options: argparse.Namespace) -> tuple[LatencyProfile, QualityTable]:
    """Returns the files that the options name.

    Raises:
        OSError: a file cannot be read.
        InvalidFileError: a file is wrong.
    """
    profile = parse_profile(options.profile.read_text("utf-8"), str(options.profile))
    return profile, parse_quality(options.quality.read_text("utf-8"), str(options.quality))


def setting_of(options: argparse.Namespace) -> Setting:
    """Returns the setting that the options name.

    Raises:
        OSError: a file cannot be read.
        InvalidFileError: a file is wrong.
        TuningError: a number is out of range.
    """
    if options.devices < 1 or not options.deadline_s > 0.0:
        raise TuningError("--devices must be at least 1, --deadline-s above 0")
    profile, quality = profile_of(options)
    tasks = [Task(name, options.deadline_s) for name in quality.quality]
    return shared_fleet_setting(
        profile.name,
        profile,
        quality,
        tiers=tuple(profile.tiers),
        device_count=options.devices,
        deadline_s=options.deadline_s,
        lengths=default_lengths(profile, tasks),
    )


_BAD_INPUT = (
    OSError,
    TuningError,
    InvalidFileError,
    MissingSnapshotError,
    SnapshotError,
    UnicodeDecodeError,
    UnknownPolicyError,
)


def run_command(work: Callable[[], None]) -> int:
    """Runs a command's work; bad input is one line on stderr and exit status 2."""
    try:
        work()
    except _BAD_INPUT as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Tunes the policies named on the command line; one JSON object per line for each."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.research.tuning",
        description="Tunes hand-made policies in the simulator.",
    )
    names = (*tunable_policies(), "all")
    parser.add_argument(
        "policies", nargs="+", choices=names, metavar="POLICY", help=", ".join(names)
    )
    parser.add_argument("--requests", type=int, default=BUDGET_REQUESTS, help="budget of each")
    parser.add_argument("--seed", type=int, default=1, help="seed of cases and search")
    add_setting_options(parser)
    options = parser.parse_args(arguments)

    def work() -> None:
        cases = tuning_cases(setting_of(options), options.seed)
        chosen = tunable_policies() if "all" in options.policies else options.policies
        for name in chosen:
            tuned = tune_within(name, cases, requests=options.requests, seed=options.seed)
            print(json.dumps(asdict(tuned)), flush=True)

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
