"""The learner's ablation: one choice changed at a time, scored beside price on unseen scenarios.

    python -m trainer.research.ablation --json build/ablation.json --markdown build/ablation.md

All variants start from the scheduled price of the shipped snapshot, but for those that say they do
not: the search itself is not repeated. Variants on paired returns are fitted to one common set of
samples, measured under that prior. Variants of Double DQN learn from episodes that they drive
themselves, from the same training scenarios.
Everything is a function of the seed. What a variant gains over price is given per kind of scenario
of `scenario.evaluation_scenarios`, with costs that differ from the profile, as they do live.

Shape letters: B decisions, C candidates, F features, N requests.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from router.catalog import parse_quality
from router.dqn.snapshot import Weights, load_snapshot
from router.features import BASE_COLUMN, FEATURE_COUNT, FEATURES, SCHEMA, SHIFT_COLUMN
from router.policies.dqn import price_parameters
from router.policies.scheduled_price import (
    PRICE_COUNT,
    VALUES,
    has_schedule,
    parameters_of,
    table_of,
)
from router.policies.table import make_policy
from router.profile import parse_profile
from router.types import Task
from trainer.learning.offline.config import OfflineConfig, PairedConfig
from trainer.learning.offline.correction import start_weights
from trainer.learning.offline.paired_learner import PairedLearner
from trainer.learning.offline.paired_returns import episode_samples
from trainer.learning.offline.price_search import reckoning_spec_of, spec_of
from trainer.learning.offline.samples import PairedSamples, joined
from trainer.learning.online.config import LearnerConfig
from trainer.learning.online.double_dqn import DoubleDqnLearner
from trainer.learning.online.replay import Replay, Transitions
from trainer.learning.online.returns import time_returns
from trainer.shipped import POLICIES, PROFILES, QUALITY, shipped
from trainer.simulation.scenarios import Mesh, Scenario, evaluation_scenarios, training_scenario
from trainer.simulation.simulate import PolicySpec, SimulationResult, simulate
from trainer.simulation.threads import side_by_side

TEST_SEEDS = (860_001, 860_002, 860_003, 860_004)
GROUPS: dict[str, tuple[str, ...]] = {
    "staleness and the prior": ("prior_shift", "own_share", "state_age"),
    "bands": ("band_distance", "ladder_load"),
    "price's terms": ("price_gap", "prior_charge", "prior_on_time"),
    "burstiness": ("burstiness", "rate_trend"),
    "work by tier": (
        "smaller_work",
        "same_work",
        "larger_work",
        "waiting_prompts",
        "cycle_time",
        "batch_fill",
        "device_in_flight",
        "disturbance",
    ),
    "offered load": (
        "load_smallest_short",
        "load_smallest_long",
        "load_tier_short",
        "load_tier_long",
    ),
}
"""Features that an ablation leaves out together."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Attributes:
        name: what differs from the shipped learner.
        paired: how it is fitted to paired returns; None: it is not.
        samples: which set of samples: "" the common one, else a key of `SAMPLE_SETS`.
        residual: the network corrects price; else it scores alone.
        without: group of features left out, "" = none.
        hidden_count: hidden units per layer.
        double: Double DQN settings; None: no Double DQN. After paired returns, if there are both.
        per_request: discount and horizon count requests, not time.
        uniform: exploration draws tiers evenly instead of from one random mix per episode.
        prior: what policy search found: "whole", "no bands", or "price", as if there had been none.
    """

    name: str
    paired: PairedConfig | None = field(default_factory=PairedConfig)
    samples: str = ""
    residual: bool = True
    without: str = ""
    hidden_count: int = 64
    double: LearnerConfig | None = None
    per_request: bool = False
    uniform: bool = False
    prior: str = "whole"


SAMPLE_SETS: dict[str, dict[str, Any]] = {
    "": {},
    "undiscounted": {"discount_deadlines": math.inf},
    "unexplored": {"explored_episodes": 0.0},
    "free misses": {"miss_cost": 0.0},
}
"""Settings in which sets of samples differ from the shipped ones."""

DOUBLE = LearnerConfig(learning_rate=1e-3, target_rate=0.005)
VARIANTS: tuple[Variant, ...] = (
    Variant(name="as shipped: search, then paired returns"),
    Variant(name="search only", paired=None),
    Variant(name="search only, no bands", paired=None, prior="no bands"),
    Variant(name="no search, load as reckoned", paired=None, prior="price"),
    Variant(name="no search, paired returns", prior="price"),
    Variant(name="no bands, paired returns", prior="no bands"),
    Variant(name="not correcting price", residual=False),
    Variant(name="returns not discounted", samples="undiscounted"),
    Variant(name="episodes do not explore", samples="unexplored"),
    Variant(name="misses cost nothing beside the reward", samples="free misses"),
    Variant(name="Huber 0.5 (near the median)", paired=PairedConfig(huber_delta=0.5)),
    Variant(name="no shrinkage", paired=PairedConfig(shrinkage=0.0)),
    Variant(name="no weight decay", paired=PairedConfig(weight_decay=0.0)),
    Variant(
        name="neither shrinkage nor decay", paired=PairedConfig(shrinkage=0.0, weight_decay=0.0)
    ),
    Variant(name="16 hidden units", hidden_count=16),
    Variant(name="32 hidden units", hidden_count=32),
    *(Variant(name=f"without {group}", without=group) for group in GROUPS),
    Variant(name="Double DQN, by time, n steps over a deadline", paired=None, double=DOUBLE),
    Variant(
        name="Double DQN, horizon 0.1 deadlines",
        paired=None,
        double=replace(DOUBLE, horizon_deadlines=0.1),
    ),
    Variant(
        name="Double DQN, 0.98 per request, 1 step", paired=None, double=DOUBLE, per_request=True
    ),
    Variant(name="Double DQN, uniform exploration", paired=None, double=DOUBLE, uniform=True),
    Variant(name="Double DQN, not correcting price", paired=None, double=DOUBLE, residual=False),
    Variant(name="paired returns, then Double DQN", double=replace(DOUBLE, learning_rate=2e-4)),
)


@dataclass(frozen=True)
class Budget:
    """How much a variant may use; the same for all of a kind.

    Attributes:
        episodes: training episodes.
        steps: gradient steps.
        requests: requests of an episode, about.
    """

    episodes: int = 300
    steps: int = 2000
    requests: int = 2000


class Ablation:
    """Runs variants on one mesh."""

    def __init__(
        self, mesh: Mesh, *, seed: int, budget: Budget, base_P: NDArray[np.float64]
    ) -> None:
        """Draws nothing yet; sets of samples are measured when first asked for.

        Args:
            mesh: the mesh.
            seed: of everything drawn.
            budget: of a variant.
            base_P: parameters of price, and the table that policy search found.
        """
        self._base_P = base_P
        self._mesh = mesh
        self._seed = seed
        self._budget = budget
        self._sets: dict[tuple[str, str], PairedSamples] = {}
        self._scenarios = evaluation_scenarios(mesh, TEST_SEEDS, requests=800)
        price = PolicySpec.of(make_policy("price", mesh.catalog))
        self._price = [simulate(s.config, s.workload, price, s.seed) for s in self._scenarios]

    def run(self, variant: Variant) -> dict[str, Any]:
        """Returns a variant's gain over price and availability, per kind of scenario."""
        start_s = time.process_time()
        rng = np.random.default_rng(self._seed)
        weights = start_weights(variant.hidden_count, rng)
        if variant.paired is not None:
            weights = self._fit(variant, weights, rng)
        if variant.double is not None:
            weights = self._double(variant, weights, rng)
        weights = blind(weights, columns_of(variant.without))
        row = self._evaluate(weights, variant)
        return {"name": variant.name, **row, "cpu_s": time.process_time() - start_s}

    def samples(self, name: str, prior: str) -> PairedSamples:
        """Returns a set of paired samples under a prior."""
        if (name, prior) not in self._sets:
            config = replace(OfflineConfig(), **SAMPLE_SETS[name])
            base_P = self._prior(prior)
            episode = reckoning_spec_of(base_P)
            future = PolicySpec.of(make_policy("price", self._mesh.catalog))
            if has_schedule(base_P):
                future = spec_of(base_P)

            def collect(seed: int) -> PairedSamples:
                rng = np.random.default_rng([self._seed, seed])
                scenario = training_scenario(self._mesh, rng, self._budget.requests)
                return episode_samples(self._mesh, scenario, episode, future, rng, config)

            parts = side_by_side(collect, range(self._budget.episodes))
            self._sets[name, prior] = joined([part for part in parts if len(part.x_BCF)])
        return self._sets[name, prior]

    def _prior(self, name: str) -> NDArray[np.float64]:
        """Returns the parameters of price and the table a variant starts from."""
        if name == "price":
            return self._base_P[:PRICE_COUNT]
        if name == "whole":
            return self._base_P
        table = table_of(self._base_P)
        for row in table["rows"]:
            row[VALUES.index("band_penalty")] = 0.0
        return np.array([*self._base_P[:PRICE_COUNT], *parameters_of(table)])

    def _fit(self, variant: Variant, weights: Weights, rng: np.random.Generator) -> Weights:
        pool = self.samples(variant.samples, variant.prior)
        keep_F = np.ones(FEATURE_COUNT, np.float32)
        keep_F[columns_of(variant.without)] = 0.0
        config = variant.paired
        assert config is not None
        base_column = BASE_COLUMN if variant.residual else None
        prior_column = SHIFT_COLUMN if variant.without != "staleness and the prior" else None
        learner = PairedLearner(weights, config, base_column=base_column, prior_column=prior_column)
        for step in range(self._budget.steps):
            learner.set_learning_rate(2e-3 * 0.05 ** (step / self._budget.steps))
            rows = rng.integers(len(pool.x_BCF), size=config.batch_size)
            batch = PairedSamples(*(part[rows] for part in pool))
            # The base's own column is needed for the loss; the network gets it blinded.
            learner.step(batch, keep_F)
        return learner.weights()

    def _double(self, variant: Variant, weights: Weights, rng: np.random.Generator) -> Weights:
        """Returns the network after Double DQN on episodes driven by itself, exploring."""
        config = variant.double
        assert config is not None
        base_column = BASE_COLUMN if variant.residual else None
        steps, episodes = self._budget.steps, self._budget.episodes // 4
        learner = DoubleDqnLearner(
            config, weights, planned_step_count=steps, base_column=base_column
        )
        replay = Replay(capacity=config.replay_capacity, feature_count=FEATURE_COUNT)
        tiers = len(self._mesh.catalog.tiers)
        for episode in range(episodes):
            scenario = training_scenario(self._mesh, rng, self._budget.requests)
            mix_T = tuple(rng.dirichlet(np.full(tiers, 0.7)).tolist())
            world = replace(
                scenario.config,
                epsilon=0.15,
                mix_T=(1.0,) * tiers if variant.uniform else mix_T,
                feature_stride=1,
                max_records=self._budget.requests,
            )
            driver = self._spec(learner.weights(), variant)
            result = simulate(world, scenario.workload, driver, scenario.seed)
            replay.append(self._transitions(result, config, variant.per_request))
            for _ in range(steps * (episode + 1) // episodes - learner.step_count):
                learner.step(replay.sample(config.batch_size, rng))
        return learner.weights()

    def _transitions(
        self, result: SimulationResult, config: LearnerConfig, per_request: bool
    ) -> Transitions:
        """Returns the recorded decisions of an episode with their returns."""
        miss_cost = OfflineConfig().miss_cost
        reward_N = result.first_reward_N - miss_cost * (result.first_reward_N <= 0.0)
        reward_N = reward_N - episode_baseline(result.workload.task_N, reward_N)
        time_N, deadline_s = result.workload.arrival_N, self._mesh.deadline_s
        tau_s, horizon_s = (
            deadline_s * config.tau_deadlines,
            deadline_s * config.horizon_deadlines,
        )
        if per_request:
            time_N, tau_s, horizon_s = np.arange(len(time_N), dtype=float), -1 / math.log(0.98), 1.0
        returns = time_returns(time_N, reward_N, np.zeros(len(time_N), np.bool_), tau_s, horizon_s)
        row_N, next_N = result.record_of_N, returns.next_N
        is_usable = returns.complete_N & (row_N >= 0) & (row_N[next_N] >= 0)
        rows = np.flatnonzero(is_usable)
        here, there = row_N[rows], row_N[next_N[rows]]
        return Transitions(
            result.features_ECF[here],
            result.allowed_EC[here],
            result.action_N[rows],
            returns.return_N[rows].astype(np.float32),
            returns.discount_N[rows].astype(np.float32),
            result.features_ECF[there],
            result.allowed_EC[there],
        )

    def _spec(self, weights: Weights, variant: Variant) -> PolicySpec:
        base_P = self._prior(variant.prior)
        if variant.residual:
            return PolicySpec.dqn(weights, base_P=base_P)
        # What cancels the base: the network's own score is then all there is.
        linear = weights.w3_P.copy()
        linear[weights.hidden_count + BASE_COLUMN] -= 1.0
        return PolicySpec.dqn(weights._replace(w3_P=linear), base_P=base_P)

    def _evaluate(self, weights: Weights, variant: Variant) -> dict[str, Any]:
        spec = self._spec(weights, variant)
        gains: dict[str, list[float]] = {}
        availabilities = []
        for scenario, price in zip(self._scenarios, self._price, strict=True):
            result = simulate(scenario.config, scenario.workload, spec, scenario.seed)
            gain = result.performance() - price.performance()
            gains.setdefault(_kind(scenario), []).append(gain)
            availabilities.append(result.availability())
        everything = np.concatenate([np.array(gain) for gain in gains.values()])
        half = 1.96 * everything.std(ddof=1) / math.sqrt(len(everything))
        return {
            "gain": float(everything.mean()),
            "gain_half": float(half),
            "gains": {kind: float(np.mean(gain)) for kind, gain in gains.items()},
            "availability": float(np.mean(availabilities)),
        }


def episode_baseline(
    task_N: NDArray[np.int64], reward_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns each request's mean reward of its task over a whole simulated episode.

    One decision moves such a mean by at most one part in the number of requests.
    """
    if len(task_N) == 0:
        return np.zeros(0)
    count_K = np.bincount(task_N)
    total_K = np.bincount(task_N, weights=reward_N)
    baseline: NDArray[np.float64] = (total_K / np.maximum(count_K, 1))[task_N]
    return baseline


def _kind(scenario: Scenario) -> str:
    """Returns the kind of an evaluation scenario."""
    first = scenario.workload.name.split()[0]
    return {"cv": "clumped", "markov": "clumped"}.get(first, first if first.isalpha() else "steady")


def columns_of(group: str) -> list[int]:
    """Returns the features of a group of `GROUPS`, none for an empty name."""
    names = [feature.name for feature in FEATURES]
    return [names.index(name) for name in GROUPS[group]] if group else []


def blind(weights: Weights, columns: list[int]) -> Weights:
    """Returns the network without its weights on some features."""
    w1_FH, w3_P = weights.w1_FH.copy(), weights.w3_P.copy()
    w1_FH[columns] = 0.0
    w3_P[[weights.hidden_count + column for column in columns]] = 0.0
    return weights._replace(w1_FH=w1_FH, w3_P=w3_P)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as a table; gains over price in points of performance."""
    kinds = list(rows[0]["gains"])
    lines = ["| variant | all | " + " | ".join(kinds) + " | availability |"]
    lines.append("|---" * (len(kinds) + 3) + "|")
    for row in rows:
        cells = [f"{100 * row['gains'][kind]:+.2f}" for kind in kinds]
        whole = f"{100 * row['gain']:+.2f} ± {100 * row['gain_half']:.2f}"
        cells = [row["name"], whole, *cells, f"{row['availability']:.4f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def opt_mesh() -> Mesh:
    """Returns the evaluation setting's mesh: four A100 with OPT's three tiers."""
    profile = shipped(PROFILES, "opt-a100.toml")
    quality = shipped(QUALITY, "opt.toml")
    table = parse_quality(quality.read_text(), str(quality))
    return Mesh.build(
        profile=parse_profile(profile.read_text(), str(profile)),
        quality=table,
        tasks=[Task(name, 0.4, expected_output_tokens=8.0) for name in table.quality],
        deadline_s=0.4,
        devices=4,
        max_rate_rps=5100.0,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the variants whose name contains one of the words given, all of them if none is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only variants whose name contains one of these")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=Budget.episodes)
    parser.add_argument("--steps", type=int, default=Budget.steps)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    budget = Budget(episodes=options.episodes, steps=options.steps)
    path = shipped(POLICIES, "opt-a100.safetensors")
    base_P = price_parameters(load_snapshot(path.read_bytes(), SCHEMA, str(path)))
    ablation = Ablation(opt_mesh(), seed=options.seed, budget=budget, base_P=base_P)
    rows = []
    for variant in VARIANTS:
        if options.words and not any(word in variant.name for word in options.words):
            continue
        rows.append(ablation.run(variant))
        sys.stdout.write(markdown(rows[-1:]).splitlines()[-1] + "\n")
        sys.stdout.flush()
        if options.json is not None:
            options.json.write_text(json.dumps(rows, indent=1))
        if options.markdown is not None:
            options.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
