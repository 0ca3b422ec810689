"""Policy improvement on paired returns: the state of one training run, round by round.

First a policy search finds a scheduled price (`price_search.py`), the prior. Learning starts from
the network of one weight that follows it, on the load as reckoned (`router/features.py`). Then come
two stages. Each collects samples first: episodes in meshes drawn anew
(`scenario.py`), and what actions are worth at some of their decisions (`paired.py`). Then it fits
a network to all samples so far, afresh: one that has fitted the first few of them, noise and all,
never quite lets go of it. In the second stage the first one's network drives half of the episodes,
so that it meets the states it leads to itself (as in DAgger, arXiv 1011.0686), and at last the
futures too, which makes it policy iteration. Networks are scored on validation seeds beside price
and the prior, whole and in parts of their correction, and the best one is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.dqn.snapshot import Snapshot, Weights, load_snapshot, save_snapshot
from router.features import BASE_COLUMN, FEATURES, SCHEMA, SHIFT_COLUMN
from router.policies.dqn import PRICE_DEFAULTS_P, price_parameters
from router.policies.price import PARAMETERS
from router.policies.scheduled_price import PRICE_COUNT, has_schedule, table_of
from router.policies.table import make_policy
from trainer.learning.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from trainer.learning.offline.episodes import (
    ImprovementConfig,
    collect_samples,
    scaled_correction,
    start_weights,
)
from trainer.learning.offline.paired_learner import PairedConfig, PairedLearner
from trainer.learning.offline.paired_returns import PairedSamples, joined
from trainer.learning.offline.price_search import ScheduleSearch, spec_of
from trainer.simulation.scenarios import (
    Mesh,
    Scenario,
    evaluation_scenarios,
    mean_scores,
    steady_scenarios,
    training_scenario,
)
from trainer.simulation.simulate import PolicySpec, SimulationResult, simulate
from trainer.simulation.threads import side_by_side

ScenarioSource = Callable[[Mesh, np.random.Generator, int], Scenario]
"""Draws a training episode for a mesh, of about so many requests."""

VALIDATION_SEEDS = (700_001, 700_002)
TEST_SEEDS = (800_001, 800_002, 800_003)
AVAILABILITY_GOAL = 0.99
HARM_COST = 0.5
"""What validation charges, beside the loss itself, where a network earns less than the prior."""
SCALES = (1.0, 0.75, 0.5, 0.25)
"""Parts of a fitted correction that validation chooses from: noise asks for less than all of it."""


class Improvement:
    """One training run: collect, fit, validate, keep the best; saved and restored whole."""

    def __init__(
        self,
        mesh: Mesh,
        *,
        seed: int,
        initial: bytes | None = None,
        episode_requests: int = 2_000,
        config: ImprovementConfig | None = None,
        paired: PairedConfig | None = None,
        scenarios: ScenarioSource = training_scenario,
        validation: Sequence[Scenario] | None = None,
    ) -> None:
        """Starts at price until the search has found a prior, or at the snapshot `initial`.

        Args:
            mesh: the mesh.
            seed: of everything drawn.
            initial: snapshot to start from; None: afresh.
            episode_requests: requests of a training episode, about.
            config: how the run learns; None: the defaults.
            paired: how the network is fitted; None: the defaults.
            scenarios: draws the training episodes.
            validation: what networks are scored on; None: the mesh's own, on VALIDATION_SEEDS.

        Raises:
            SnapshotError: `initial` is damaged, of another schema, or corrects no price score.
        """
        self._mesh = mesh
        self._seed = seed
        self.config = config or ImprovementConfig()
        """How the run learns."""
        self._paired = paired or PairedConfig()
        self._rng = np.random.default_rng(seed)
        self._episode_requests = episode_requests
        self._parent, self._base_P = "", PRICE_DEFAULTS_P
        weights = start_weights(self.config.hidden_count, self._rng)
        if initial is not None:
            snapshot = load_snapshot(initial, SCHEMA, "initial snapshot")
            weights, self._parent = snapshot.weights, snapshot.version
            self._base_P = price_parameters(snapshot)
        self._search: ScheduleSearch | None = None
        if initial is None and self.config.schedule is not None:
            self._search = ScheduleSearch(mesh, self._base_P, seed, self.config.schedule)
        self.learning_from_s = 0.0
        """When learning from samples began, seconds of the run: after the search."""
        self._price = PolicySpec.of(make_policy("price", mesh.catalog, self._base()))
        self._best = self._start = weights
        self._learner = self._fresh_learner()
        self._fit = -1
        self._step_count = 0
        self._scenarios = scenarios
        self._validation = validation or [
            *evaluation_scenarios(mesh, VALIDATION_SEEDS, requests=800),
            *steady_scenarios(mesh, VALIDATION_SEEDS[0], requests=800),
        ]
        self._price_scores = _run(self._price, self._validation)
        # No prior has been measured yet, and price is charged no harm beside it.
        self._prior_S = np.full(len(self._validation), -np.inf)
        self._price_score = self._judge(*self._price_scores)
        self._start_from_prior()
        self._samples: list[PairedSamples] = []
        self._sample_count = 0
        self._rounds = 0
        self._loss: float | None = None

    def warm_up(self) -> None:
        """Compiles what the rounds use, so that the budget is spent on learning."""
        scenario = self._scenarios(self._mesh, np.random.default_rng(0), 60)
        few = replace(self.config, samples_per_episode=2)
        rng = np.random.default_rng(0)
        collect_samples(self._mesh, scenario, self._spec(self._start), self._prior, rng, few)
        if self._search is not None:
            self._search.warm_up()

    @property
    def searches(self) -> bool:
        """Whether the search for the prior is still to be done, or to be ended."""
        return self._search is not None

    def search(self, train_s: float, rounds: int | None) -> Iterator[float]:
        """Searches for the prior if that is still to be done; yields the share done.

        By `rounds` the search is in proportion to them, whatever the machine, and whole from
        `full_rounds` on; else it gets its share of the time.
        """
        if self._search is None:
            return
        config = self.config
        if self._search.knots_done == 0 and rounds is not None:
            self._search.shorten(rounds / config.full_rounds)
        elif self._search.knots_done == 0:
            self._search.shorten(config.search_share * train_s / self._search.full_s())
        while self._search.share_done < 1.0:
            self._search.next_knot()
            yield self._search.share_done
        self._base_P = self._search.table_P
        self._search = None
        self._start_from_prior()

    def done(self, elapsed_s: float, train_s: float, rounds: int | None) -> float:
        """Returns the share of the learning from samples that is done, 0 to 1."""
        if rounds is not None:
            return min(1.0, self._rounds / rounds)
        left_s = train_s - self.learning_from_s
        return min(1.0, (elapsed_s - self.learning_from_s) / left_s) if left_s > 0.0 else 1.0

    def round(self, done: float) -> None:
        """Does the next round: one that collects or one that fits, by the share that is done."""
        fit = next(
            (i for i, (start, end) in enumerate(self.config.fits) if start <= done < end), -1
        )
        if fit != self._fit:
            if self._fit >= 0:
                self._validate()
            if fit >= 0:
                self._learner = self._fresh_learner()
            self._fit = fit
        if fit < 0 or not self._samples:
            self._collect(done)
        else:
            start, end = self.config.fits[fit]
            self._learn((done - start) / (end - start))
        self._rounds += 1

    def _collect(self, done: float) -> None:

        def collect(seed: int) -> PairedSamples:
            rng = np.random.default_rng([self._seed, seed])
            scenario = self._scenarios(self._mesh, rng, self._episode_requests)
            episode, future = self._drivers(scenario, done, rng)
            return collect_samples(self._mesh, scenario, episode, future, rng, self.config)

        # A generator of its own for each episode: how many run side by side changes nothing.
        seeds = self._rng.integers(2**62, size=self.config.episodes_per_round)
        for samples in side_by_side(collect, [int(seed) for seed in seeds]):
            if len(samples.x_BCF):
                self._samples.append(samples)
                self._sample_count += len(samples.x_BCF)
        self._trim()

    def _learn(self, fitted: float) -> None:
        pool = self._pool()
        self._learner.set_learning_rate(self.config.learning_rate * 0.05**fitted)
        for _ in range(self.config.steps_per_round):
            rows = self._rng.integers(len(pool.x_BCF), size=self._paired.batch_size)
            loss = self._learner.step(PairedSamples(*(part[rows] for part in pool)))
            self._loss = loss if self._loss is None else self._loss + 0.05 * (loss - self._loss)
        self._step_count += self.config.steps_per_round

    def _fresh_learner(self) -> PairedLearner:
        return PairedLearner(
            self._start, self._paired, base_column=BASE_COLUMN, prior_column=SHIFT_COLUMN
        )

    # ---- state ----

    def save(self, path: Path, elapsed_s: float) -> None:
        """Writes the state to a checkpoint; raises CheckpointError if it cannot be written."""
        arrays: dict[str, NDArray[Any]] = {
            f"learner.{k}": v for k, v in self._learner.get_state().items()
        }
        arrays |= {f"best.{k}": np.asarray(v) for k, v in self._best._asdict().items()}
        if self._samples:
            arrays |= {f"samples.{k}": v for k, v in self._pool()._asdict().items()}
        meta = {
            "key": self._key(),
            "elapsed_s": elapsed_s,
            "rounds": self._rounds,
            "sample_count": self._sample_count,
            "step_count": self._step_count,
            "fit": self._fit,
            "best_score": self._best_score,
            "rng": self._rng.bit_generator.state,
            "base": self._base_P.tolist(),
            "learning_from_s": self.learning_from_s,
            "search": None if self._search is None else self._search.get_state(),
        }
        save_checkpoint(path, meta, arrays)

    def restore(self, path: Path | None) -> float:
        """Goes on from a checkpoint if there is one; returns the seconds it had used.

        Raises:
            CheckpointError: it is damaged, or of a run with other settings.
        """
        found = load_checkpoint(path) if path is not None else None
        if found is None:
            return 0.0
        meta, arrays = found
        if meta["key"] != self._key():
            raise CheckpointError(f"{path}: is of another run; delete it or give its settings")

        def part(prefix: str) -> dict[str, NDArray[Any]]:
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        self._learner.set_state(part("learner."))
        w1, b1, w2, b2, w3, b3 = (part("best.")[name] for name in Weights._fields)
        self._best = Weights(w1, b1, w2, b2, w3, np.float32(b3))
        samples = part("samples.")
        self._samples = [PairedSamples(**samples)] if samples else []
        self._rounds, self._sample_count = meta["rounds"], meta["sample_count"]
        self._step_count, self._fit = meta["step_count"], meta["fit"]
        self._rng.bit_generator.state = meta["rng"]
        self._best_score = float(meta["best_score"])
        self._base_P = np.array(meta["base"], np.float64)
        self.learning_from_s = meta["learning_from_s"]
        if meta["search"] is None:
            self._search = None
        elif self._search is not None:
            self._search.set_state(meta["search"])
        self._prior = self._fast_prior()
        self._measure_prior()
        self._choose_driver()
        return float(meta["elapsed_s"])

    def _key(self) -> list[Any]:
        """Returns what makes two runs the same run."""
        mesh = self._mesh
        return [
            self._seed,
            self._parent,
            SCHEMA,
            mesh.profile.name,
            [list(tiers) for tiers in mesh.devices],
            [task.name for task in mesh.catalog.tasks],
            mesh.deadline_s,
            mesh.max_rate_rps,
            json.loads(json.dumps([asdict(self.config), asdict(self._paired)])),
        ]

    # ---- results ----

    def facts(self, elapsed_s: float) -> dict[str, Any]:
        """Returns what progress shows."""
        return {
            "phase": "train",
            "step_count": self._step_count,
            "steps_per_second": self._step_count / max(elapsed_s, 1e-3),
            "transition_count": self._sample_count,
            "loss": self._loss,
            "epsilon": self.config.epsilon * self.config.explored_episodes,
            "score": self._best_score,
            "mean_reward": max(0.0, self._best_score),
            "price_score": self._price_score,
        }

    def finish(self) -> float:
        """Scores what the last fit made, keeps it if it is the best, and returns the best score."""
        self._validate()
        return self._best_score

    def evaluate(self) -> dict[str, Any]:
        """Returns scores on the test seeds, the baselines' beside the policy's."""
        self._validate()
        scenarios = evaluation_scenarios(self._mesh, TEST_SEEDS, requests=800)
        tiers = self._mesh.catalog.tiers
        names = ("price", "greedy", f"static-{tiers[-1]}", f"static-{tiers[0]}")
        found = {
            name: score(PolicySpec.of(make_policy(name, self._mesh.catalog)), scenarios)
            for name in names
        }
        own = score(self._spec(self._best), scenarios)
        zeroed = score(self._spec(self._best.zeroed()), scenarios)
        prior = score(self._spec(self._start), scenarios)
        return {
            **own,
            "validation_score": self._best_score,
            "zeroed": zeroed,
            "prior": prior,
            "baselines": found,
        }

    def snapshot(self, evaluation: dict[str, Any]) -> bytes:
        """Returns the best network with everything known about it."""
        mesh = self._mesh
        return save_snapshot(
            Snapshot(
                self._best,
                SCHEMA,
                tuple(feature.name for feature in FEATURES),
                training={
                    "mode": "simulated",
                    "method": "policy search for a scheduled price, then policy improvement on "
                    "paired returns, as a correction of price",
                    "seed": self._seed,
                    "parent": self._parent,
                    "rounds": self._rounds,
                    "step_count": self._step_count,
                    "transition_count": self._sample_count,
                    "episode_requests": self._episode_requests,
                    **asdict(self.config),
                    **asdict(self._paired),
                },
                evaluation=evaluation,
                fleet={
                    "profile": mesh.profile.name,
                    "tiers": list(mesh.catalog.tiers),
                    "tasks": [task.name for task in mesh.catalog.tasks],
                    "devices": [list(tiers) for tiers in mesh.devices],
                    "deadline_s": mesh.deadline_s,
                    "max_rate_rps": mesh.max_rate_rps,
                },
                base=self._base(),
                schedule=table_of(self._base_P),
            )
        )

    # ---- inside ----

    def _base(self) -> dict[str, float]:
        names = (parameter.name for parameter in PARAMETERS)
        return dict(zip(names, self._base_P[:PRICE_COUNT].tolist(), strict=True))

    def _spec(self, weights: Weights) -> PolicySpec:
        return PolicySpec.dqn(weights, base_P=self._base_P)

    def _drivers(
        self, scenario: Scenario, done: float, rng: np.random.Generator
    ) -> tuple[PolicySpec, PolicySpec]:
        """Returns what drives an episode and its futures.

        Futures under the prior cost less than half, and what a choice is worth differs little
        between two good policies; so the best network takes them over only towards the end. But
        where routers see each other late the prior, which reckons no load, may collapse, and no
        choice would matter.
        """
        episode = self._driver if rng.random() < 0.5 else self._prior
        by_prior = scenario.config.routers == 1 and done < self.config.prior_futures
        return episode, self._prior if by_prior else self._driver

    def _validate(self) -> None:
        fitted = self._learner.weights()
        for scale in SCALES:
            weights = scaled_correction(fitted, scale)
            score = self._score(self._spec(weights))
            if score > self._best_score:
                self._best, self._best_score = weights, score
        self._choose_driver()

    def _start_from_prior(self) -> None:
        """Starts over from the network that follows the prior."""
        self._prior = self._fast_prior()
        self._best_score = self._measure_prior()
        self._choose_driver()

    def _measure_prior(self) -> float:
        """Finds what the start network earns in each scenario of validation; returns its score."""
        self._prior_S, availability_S = _run(self._spec(self._start), self._validation)
        return self._judge(self._prior_S, availability_S)

    def _fast_prior(self) -> PolicySpec:
        """Returns the prior on the load as seen, without features."""
        if has_schedule(self._base_P):
            return spec_of(self._base_P)
        return PolicySpec.of(make_policy("price", self._mesh.catalog, self._base()))

    def _choose_driver(self) -> None:
        """Has episodes driven by the best network, unless not even it comes up to price."""
        is_better = self._best_score > self._price_score
        self._driver = self._spec(self._best) if is_better else self._prior

    def _score(self, spec: PolicySpec) -> float:
        """Returns the score of a policy on validation."""
        return self._judge(*_run(spec, self._validation))

    def _judge(
        self, performance_S: NDArray[np.float64], availability_S: NDArray[np.float64]
    ) -> float:
        """Returns mean performance, less twice what availability lacks of its goal, less harm.

        Where price itself misses the goal, its availability is the goal: no policy can answer what
        no device has the time for. Harm is what the prior earned more, scenario by scenario: what a
        fit gains in many places it must not pay for with a few.
        """
        goal_S = np.minimum(AVAILABILITY_GOAL, self._price_scores[1])
        lacking_S = np.maximum(0.0, goal_S - availability_S)
        harm_S = np.maximum(0.0, self._prior_S - performance_S)
        return float((performance_S - 2.0 * lacking_S - HARM_COST * harm_S).mean())

    def _pool(self) -> PairedSamples:
        if len(self._samples) > 1:
            self._samples = [joined(self._samples)]
        return self._samples[0]

    def _trim(self) -> None:
        """Drops the oldest samples beyond the bound."""
        kept = self.config.kept_samples
        if sum(len(part.x_BCF) for part in self._samples) > kept:
            self._samples = [PairedSamples(*(part[-kept:] for part in self._pool()))]


def _run(spec: PolicySpec, scenarios: Sequence[Scenario]) -> tuple[Any, Any]:
    """Returns performance and availability per scenario."""

    def run(s: Scenario) -> SimulationResult:
        return simulate(s.config, s.workload, spec, s.seed)

    results = side_by_side(run, scenarios)
    performance_S = np.array([result.performance() for result in results])
    return performance_S, np.array([result.availability() for result in results])


def score(spec: PolicySpec, scenarios: Sequence[Scenario]) -> dict[str, float]:
    """Returns mean performance, mean and worst availability over scenarios."""
    return mean_scores(*_run(spec, scenarios))
