"""Online learning from a good snapshot: what it keeps, and what it gains where the world differs.

    python -m trainer.research.online --seeds 1 2

The loop of the services (`trainer/learning/online/loop.py`, its learner, its replay of 50,000)
goes on from a snapshot on four devices: Poisson traffic of 3,000 requests or 5 s at 100, 300,
1,000 and 3,000 req/s in turn, one router, safety net off, no gate, the network in use replaced
after each of these. The router knows the profile; the world may differ from it: one tier's costs
above the profile, a task mix other than the even one. After 26,000, 78,000 and 156,000 requests,
about, the network is tested without exploration on requests that no run learned on. `live` is
what the learning traffic itself earned over the whole run, which is what exploration costs.

The reference row `told` is the start network where the router knows the true costs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from router.catalog import QualityTable
from router.dqn.snapshot import Weights, load_snapshot
from router.features import SCHEMA
from router.policies.dqn import price_parameters
from router.profile import LatencyProfile
from trainer.evaluation.seeds import stream
from trainer.evaluation.shifts import NOMINAL
from trainer.learning.online.config import online_config
from trainer.learning.online.joining import DecisionRecord, Ending, OutcomeRecord
from trainer.learning.online.loop import OnlineLoop
from trainer.research.tuning import add_setting_options, profile_of, run_command, setting_of
from trainer.simulation.setting import Setting, shared_fleet_setting
from trainer.simulation.simulate import PolicySpec, SimulationResult, simulate
from trainer.simulation.workload import Workload, poisson

RATES_RPS = (100.0, 300.0, 1000.0, 3000.0)
MARKS = (4, 12, 24)
"""Stretches of traffic after which the network is tested; the last ends the run."""
STRETCH_REQUESTS = 3000
LEAST_STRETCH_S = 5.0
TEST_REQUESTS = 4000
TEST_SEEDS = (900, 901, 902)
WARM_UP_S = 0.8
PAUSE_S = 2.0
"""Time between two stretches: no return runs from one into the next."""
REPLAY_CAPACITY = 50_000
MIN_TRANSITIONS = 1_000
PATIENCE_S = 5.0
WORLDS = (NOMINAL, "largest +40 %", "largest x2.5", "middle x2.5", "skewed")
EXPLORATION = (0.0, 0.02)


@dataclass(frozen=True, slots=True)
class Score:
    """Means over the rates.

    Attributes:
        performance: mean reward per request.
        availability: share answered on time.
    """

    performance: float
    availability: float

    def __str__(self) -> str:
        """Returns both for a table."""
        return f"{self.performance:.4f}/{self.availability:.3f}"


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One online run.

    Attributes:
        world: name of the world.
        epsilon: share of explored decisions.
        seed: seed of traffic and learner.
        start: score of the start network.
        told: score of it where the router knows the true costs.
        after: scores at the marks.
        live: score of the learning traffic itself.
    """

    world: str
    epsilon: float
    seed: int
    start: Score
    told: Score
    after: tuple[Score, ...]
    live: Score


def known_setting(
    world: str, setting: Setting, profile: LatencyProfile, quality: QualityTable
) -> Setting:
    """Returns a world of `WORLDS` as one whose costs the router knows.

    Args:
        world: its name.
        setting: the nominal one.
        profile: costs of the nominal one.
        quality: qualities of both.
    """
    if world == NOMINAL:
        return setting
    if world == "skewed":
        count = len(setting.catalog.tasks)
        return replace(setting, task_share=tuple(float(k == 0) for k in range(count)))
    names = tuple(profile.tiers)
    tier = names[-1] if world.startswith("largest") else names[len(names) // 2]
    factor = 1.4 if "+40" in world else 2.5
    tiers = profile.tiers | {tier: profile.tiers[tier].scaled(factor)}
    return shared_fleet_setting(
        setting.name,
        replace(profile, tiers=tiers),
        quality,
        tiers=names,
        device_count=len(setting.fleet.devices),
        deadline_s=setting.deadline_s,
        lengths=setting.lengths,
    )


class _Run:
    """One online run in one world."""

    def __init__(self, setting: Setting, start: bytes, *, epsilon: float, seed: int) -> None:
        snapshot = load_snapshot(start, SCHEMA)
        self._setting = setting
        self._config = replace(setting.config(safety=False), feature_stride=1, epsilon=epsilon)
        self._base_P = price_parameters(snapshot)
        self._seed = seed
        self._sequence = 0
        self._time_s = 0.0
        self.weights = snapshot.weights
        self._loop = OnlineLoop(
            online_config(
                hidden_count=len(snapshot.weights.b1_H),
                replay_capacity=REPLAY_CAPACITY,
                deadline_s=setting.deadline_s,
                patience_s=PATIENCE_S,
                min_transitions=MIN_TRANSITIONS,
                seed=seed,
            ),
            initial=start,
        )

    def live(self, stretch: int) -> SimulationResult:
        """Serves a stretch of traffic, learns from all of it and takes over the network."""
        rate_rps = RATES_RPS[stretch % len(RATES_RPS)]
        workload = _workload(
            self._setting, rate_rps, STRETCH_REQUESTS, self._seed, f"online/{stretch}"
        )
        policy = PolicySpec.dqn(self.weights, base_P=self._base_P)
        result = simulate(self._config, workload, policy, seed=stretch)
        self._loop.ingest(*self._records(result))
        ticks = itertools.repeat(0.0)  # as many steps as the data allow, whatever they take
        self._loop.learn(1.0, lambda: next(ticks))
        self.weights = load_snapshot(self._loop.snapshot(), SCHEMA).weights
        return result

    def _records(
        self, result: SimulationResult
    ) -> tuple[list[DecisionRecord], list[OutcomeRecord]]:
        """Returns the records that a router would have written."""
        decisions, outcomes = [], []
        workload = result.workload
        for i in np.flatnonzero(result.record_of_N >= 0):
            self._sequence += 1
            key = ("study", 1, self._sequence)
            decisions.append(
                DecisionRecord(
                    key,
                    self._time_s + float(workload.arrival_N[i]),
                    result.features_ECF[result.record_of_N[i]],
                    int(result.action_N[i]),
                    SCHEMA,
                    "",
                    float(result.probability_N[i]),
                    float(workload.slack_N[i]),
                    str(workload.task_N[i]),
                )
            )
            outcomes.append(OutcomeRecord(key, float(result.first_reward_N[i]), Ending.ANSWERED))
        self._time_s += workload.duration_s + PAUSE_S
        return decisions, outcomes


def study_rows(
    profile: LatencyProfile,
    quality: QualityTable,
    nominal: Setting,
    start: bytes,
    *,
    worlds: Sequence[str],
    seeds: Sequence[int],
) -> Iterator[StudyRow]:
    """Yields the rows: by world, by exploration, by seed."""
    snapshot = load_snapshot(start, SCHEMA)
    base_P = price_parameters(snapshot)
    for world in worlds:
        known = known_setting(world, nominal, profile, quality)
        true = replace(known, fleet=nominal.fleet)

        def score(setting: Setting, weights: Weights) -> Score:
            return test_score(setting, PolicySpec.dqn(weights, base_P=base_P))

        first, told = score(true, snapshot.weights), score(known, snapshot.weights)
        for epsilon, seed in itertools.product(EXPLORATION, seeds):
            run = _Run(true, start, epsilon=epsilon, seed=seed)
            after, live = [], []
            for stretch in range(MARKS[-1]):
                live.append(_score([run.live(stretch)]))
                if stretch + 1 in MARKS:
                    after.append(score(true, run.weights))
            yield StudyRow(world, epsilon, seed, first, told, tuple(after), _mean(live))


def test_score(setting: Setting, policy: PolicySpec) -> Score:
    """Returns a policy's mean score over the rates on the test requests."""
    return _mean(
        [
            _score(
                [
                    simulate(
                        setting.config(safety=False),
                        _workload(setting, rate_rps, TEST_REQUESTS, seed, "online/test"),
                        policy,
                    )
                    for seed in TEST_SEEDS
                ]
            )
            for rate_rps in RATES_RPS
        ]
    )


def _workload(
    setting: Setting, rate_rps: float, requests: int, seed: int, purpose: str
) -> Workload:
    rng = stream(seed, f"{purpose}/{rate_rps:g}")
    duration_s = max(requests / rate_rps, LEAST_STRETCH_S)
    return setting.workload(poisson(rate_rps, duration_s, rng), duration_s, rng)


def _score(results: Sequence[SimulationResult]) -> Score:
    return _mean([Score(r.performance(WARM_UP_S), r.availability(WARM_UP_S)) for r in results])


def _mean(scores: Sequence[Score]) -> Score:
    return Score(
        float(np.mean([score.performance for score in scores])),
        float(np.mean([score.availability for score in scores])),
    )


def row_line(row: StudyRow) -> str:
    """Returns a row of the Markdown table."""
    cells = (
        row.world,
        f"{row.epsilon:.0%}",
        str(row.seed),
        *(str(score) for score in (row.start, *row.after, row.told, row.live)),
    )
    return f"| {' | '.join(cells)} |"


def header_lines() -> str:
    """Returns the head of the Markdown table."""
    marks = [f"{_requests(mark) // 1000},000" for mark in MARKS]
    names = ("world", "explored", "seed", "start", *marks, "told", "live")
    return f"| {' | '.join(names)} |\n" + "|---" * len(names) + "|"


def _requests(mark: int) -> int:
    """Returns the mean number of requests in the stretches up to a mark."""
    return round(
        sum(
            max(STRETCH_REQUESTS, LEAST_STRETCH_S * RATES_RPS[k % len(RATES_RPS)])
            for k in range(mark)
        )
    )


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; a row at a time, since a run takes a minute."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.research.online", description="Learns online from a good snapshot."
    )
    add_setting_options(parser)
    parser.add_argument("--snapshot", type=Path, default=Path("policies/opt-a100.safetensors"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    options = parser.parse_args(arguments)
    # Networks this small lose by being spread over cores, above all beside another process.
    torch.set_num_threads(1)

    def work() -> None:
        profile, quality = profile_of(options)
        nominal = setting_of(options)
        start = options.snapshot.read_bytes()
        print(header_lines(), flush=True)
        for row in study_rows(
            profile, quality, nominal, start, worlds=options.worlds, seeds=options.seeds
        ):
            print(row_line(row), flush=True)

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
