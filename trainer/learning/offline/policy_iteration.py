"""Policy iteration on paired returns: how the learned policy comes about, step by step.

First a policy search finds a scheduled price (`price_search.py`), the prior. Learning starts from
the network that follows it, on the load as reckoned (`router/features.py`). Then come two stages.
Each collects samples first: episodes in meshes drawn anew (`trainer/simulation/scenarios.py`), and
what actions are worth at some of their decisions (`paired_returns.py`). Then it fits a network to
all samples so far, afresh: one that has fitted the first few of them, noise and all, never quite
lets go of it. In the second stage the first one's network drives half of the episodes, so that it
meets the states it leads to itself (as in DAgger, arXiv 1011.0686), and at last the futures too,
which makes it policy iteration. Networks are scored on validation seeds beside price and the prior,
whole and in parts of their correction, and the best one is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.dqn.snapshot import Snapshot, Weights, load_snapshot, save_snapshot
from router.features import BASE_COLUMN, FEATURES, SCHEMA, SHIFT_COLUMN
from router.policies.dqn import PRICE_DEFAULTS_P, price_parameters
from router.policies.price import PARAMETERS
from router.policies.scheduled_price import PRICE_COUNT, has_schedule, table_of
from router.policies.table import make_policy
from trainer.learning.offline.config import Budget, OfflineConfig
from trainer.learning.offline.correction import scaled_correction, start_weights
from trainer.learning.offline.paired_learner import PairedLearner
from trainer.learning.offline.paired_returns import episode_samples
from trainer.learning.offline.price_search import PriceSearch, spec_of
from trainer.learning.offline.samples import PairedSamples, SamplePool
from trainer.learning.offline.validation import Validation
from trainer.simulation.scenarios import Mesh, Scenario, training_scenario
from trainer.simulation.simulate import PolicySpec
from trainer.simulation.threads import side_by_side

ScenarioSource = Callable[[Mesh, np.random.Generator, int], Scenario]
"""Draws a training episode for a mesh, of about so many requests."""

SCALES = (1.0, 0.75, 0.5, 0.25)
"""Parts of a fitted correction that validation chooses from: noise asks for less than all of it."""
LEARNING_RATE_END = 0.05
"""Learning rate at the end of a fit, over that at its start."""
SEARCH, TRAIN = "search", "train"
COLLECTING = -1
"""Stage in which samples are collected; the others are those of `OfflineConfig.fits`."""


class PolicyIteration:
    """One run: search, then collect and fit in turns, keep the best; saved and restored whole."""

    def __init__(
        self,
        mesh: Mesh,
        config: OfflineConfig | None = None,
        *,
        seed: int,
        initial: bytes | None = None,
        scenarios: ScenarioSource = training_scenario,
        validation: Sequence[Scenario] | None = None,
    ) -> None:
        """Starts at price until the search has found a prior, or at the snapshot `initial`.

        Args:
            mesh: the mesh.
            config: how the run learns; None: the defaults.
            seed: of everything drawn.
            initial: snapshot to start from; None: afresh.
            scenarios: draws the training episodes.
            validation: what networks are scored on; None: see `Validation`.

        Raises:
            SnapshotError: `initial` is damaged, of another schema, or corrects no price score.
        """
        self._mesh, self._seed, self._scenarios = mesh, seed, scenarios
        self._config = config = config or OfflineConfig()
        self._rng = np.random.default_rng(seed)
        self._start = start_weights(config.hidden_count, self._rng)
        self._parent, base_P = "", PRICE_DEFAULTS_P
        self._search: PriceSearch | None = None
        if initial is not None:
            snapshot = load_snapshot(initial, SCHEMA, "initial snapshot")
            self._start, self._parent = snapshot.weights, snapshot.version
            base_P = price_parameters(snapshot)
        elif config.search is not None:
            self._search = PriceSearch(mesh, base_P, seed, config.search)
        price = PolicySpec.of(make_policy("price", mesh.catalog, _price_of(base_P)))
        self._validation = Validation(mesh, price, validation)
        self._best = self._start
        self._best_score = self._follow(base_P)
        self._pool = SamplePool(config.kept_samples)
        self._learner = self._fresh_learner()
        self._stage = COLLECTING
        self._searched_s = 0.0
        self._rounds = self._step_count = 0
        self._loss: float | None = None

    # ---- the algorithm ----

    def steps(self, budget: Budget, elapsed_s: Callable[[], float]) -> Iterator[tuple[str, float]]:
        """Does the run; yields its phase and the share done (0 to 1) after every step.

        By rounds the search is in proportion to them, whatever the machine, and whole from
        `full_rounds` on; by time it gets its share of it.

        Args:
            budget: what limits the run.
            elapsed_s: time the run has taken, with what it took before it was restored.
        """
        searched = self._config.search_share
        if self._search is not None:
            self._limit_search(self._search, budget)
            while self._search.share_done < 1.0:
                self._search.next_knot()
                yield SEARCH, searched * self._search.share_done
            self._best_score = self._follow(self._search.table_P)
            self._search, self._searched_s = None, elapsed_s()
        elif not self._searched_s > 0.0:
            searched = 0.0
        while (done := self._share_done(budget, elapsed_s())) < 1.0:
            self._enter(self._stage_at(done))
            if self._stage == COLLECTING or not len(self._pool):
                self._collect(done)
            else:
                start, end = self._config.fits[self._stage]
                self._fit((done - start) / (end - start))
            self._rounds += 1
            yield TRAIN, searched + (1.0 - searched) * self._share_done(budget, elapsed_s())
        self._keep_best()

    def warm_up(self) -> None:
        """Compiles what the steps use, so that the budget is spent on learning."""
        rng = np.random.default_rng(0)
        scenario = self._scenarios(self._mesh, np.random.default_rng(0), 60)
        few = replace(self._config, samples_per_episode=2)
        episode_samples(
            self._mesh, scenario, self._spec(self._start), self._prior, rng, few, self._base_P
        )
        if self._search is not None:
            self._search.warm_up()

    def _limit_search(self, search: PriceSearch, budget: Budget) -> None:
        """Has a search that has not begun do as much as the budget has room for."""
        if search.knots_done > 0:
            return
        if budget.rounds is not None:
            search.shorten(budget.rounds / self._config.full_rounds)
        else:
            search.shorten(self._config.search_share * budget.seconds / search.full_s())

    def _follow(self, base_P: NDArray[np.float64]) -> float:
        """Takes a scheduled price, or price itself, for the prior; returns its score."""
        self._base_P = base_P
        if has_schedule(base_P):
            self._prior = spec_of(base_P)
        else:
            self._prior = PolicySpec.of(make_policy("price", self._mesh.catalog, _price_of(base_P)))
        return self._validation.follow(self._spec(self._start))

    def _share_done(self, budget: Budget, elapsed_s: float) -> float:
        """Returns the share of the rounds that is done, 0 to 1."""
        if budget.rounds is not None:
            return min(1.0, self._rounds / budget.rounds)
        left_s = budget.seconds - self._searched_s
        return min(1.0, (elapsed_s - self._searched_s) / left_s) if left_s > 0.0 else 1.0

    def _stage_at(self, done: float) -> int:
        fits = enumerate(self._config.fits)
        return next((i for i, (start, end) in fits if start <= done < end), COLLECTING)

    def _enter(self, stage: int) -> None:
        """Ends the stage under way, if it is another one, and begins this one."""
        if stage == self._stage:
            return
        if self._stage != COLLECTING:
            self._keep_best()
        if stage != COLLECTING:
            self._learner = self._fresh_learner()
        self._stage = stage

    def _collect(self, done: float) -> None:
        """Measures what actions are worth in a few episodes."""

        def collect(seed: int) -> PairedSamples:
            rng = np.random.default_rng([self._seed, seed])
            scenario = self._scenarios(self._mesh, rng, self._config.episode_requests)
            episode, future = self._drivers(scenario, done, rng)
            # The prior reads no features, so they are computed by what the network corrects.
            return episode_samples(
                self._mesh, scenario, episode, future, rng, self._config, self._base_P
            )

        # A generator of its own for each episode: how many run side by side changes nothing.
        seeds = self._rng.integers(2**62, size=self._config.episodes_per_round)
        for samples in side_by_side(collect, [int(seed) for seed in seeds]):
            self._pool.add(samples)

    def _drivers(
        self, scenario: Scenario, done: float, rng: np.random.Generator
    ) -> tuple[PolicySpec, PolicySpec]:
        """Returns what drives an episode and its futures.

        Futures under the prior cost less than half, and what a choice is worth differs little
        between two good policies; so the best network takes them over only towards the end. But
        where routers see each other late the prior, which reckons no load, may collapse, and no
        choice would matter. A network that does not even come up to price drives nothing.
        """
        is_better = self._best_score > self._validation.price_score
        best = self._spec(self._best) if is_better else self._prior
        episode = best if rng.random() < 0.5 else self._prior
        by_prior = scenario.config.routers == 1 and done < self._config.prior_futures
        return episode, self._prior if by_prior else best

    def _fit(self, fitted: float) -> None:
        """Does some gradient steps; `fitted` is the share of the fit that is done."""
        config = self._config
        self._learner.set_learning_rate(config.learning_rate * LEARNING_RATE_END**fitted)
        for _ in range(config.steps_per_round):
            loss = self._learner.step(self._pool.sample(config.paired.batch_size, self._rng))
            self._loss = loss if self._loss is None else self._loss + 0.05 * (loss - self._loss)
        self._step_count += config.steps_per_round

    def _keep_best(self) -> None:
        """Scores what was fitted, whole and in parts, and keeps what beats the best so far."""
        fitted = self._learner.weights()
        for scale in SCALES:
            weights = scaled_correction(fitted, scale)
            score = self._validation.score(self._spec(weights))
            if score > self._best_score:
                self._best, self._best_score = weights, score

    def _fresh_learner(self) -> PairedLearner:
        return PairedLearner(
            self._start, self._config.paired, base_column=BASE_COLUMN, prior_column=SHIFT_COLUMN
        )

    def _spec(self, weights: Weights) -> PolicySpec:
        return PolicySpec.dqn(weights, base_P=self._base_P)

    # ---- results ----

    def facts(self, elapsed_s: float) -> dict[str, Any]:
        """Returns what progress shows."""
        return {
            "step_count": self._step_count,
            "steps_per_second": self._step_count / max(elapsed_s, 1e-3),
            "transition_count": self._pool.total_count,
            "loss": self._loss,
            "epsilon": self._config.epsilon * self._config.explored_episodes,
            "score": self._best_score,
            "mean_reward": max(0.0, self._best_score),
            "price_score": self._validation.price_score,
        }

    def specs(self) -> dict[str, PolicySpec]:
        """Returns the best policy, it without its network, and the prior it started from."""
        return {
            "best": self._spec(self._best),
            "zeroed": self._spec(self._best.zeroed()),
            "prior": self._spec(self._start),
        }

    def snapshot(self, evaluation: Mapping[str, Any] | None = None) -> bytes:
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
                    "transition_count": self._pool.total_count,
                    **asdict(self._config),
                },
                evaluation={**(evaluation or {}), "validation_score": self._best_score},
                fleet={
                    "profile": mesh.profile.name,
                    "tiers": list(mesh.catalog.tiers),
                    "tasks": [task.name for task in mesh.catalog.tasks],
                    "devices": [list(tiers) for tiers in mesh.devices],
                    "deadline_s": mesh.deadline_s,
                    "max_rate_rps": mesh.max_rate_rps,
                },
                base=_price_of(self._base_P),
                schedule=table_of(self._base_P),
            )
        )

    # ---- state ----

    def key(self) -> list[Any]:
        """Returns what makes two runs the same run, as JSON values."""
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
            _digest_of(mesh),
            json.loads(json.dumps(asdict(self._config))),
        ]

    def get_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Returns what is needed to go on: JSON values, and arrays by name."""
        parts = {
            "learner": self._learner.get_state(),
            "best": {name: np.asarray(part) for name, part in self._best._asdict().items()},
            "samples": self._pool.get_state(),
        }
        arrays = {f"{part}.{k}": v for part, found in parts.items() for k, v in found.items()}
        return {
            "rounds": self._rounds,
            "sample_count": self._pool.total_count,
            "step_count": self._step_count,
            "stage": self._stage,
            "best_score": self._best_score,
            "rng": self._rng.bit_generator.state,
            "base": self._base_P.tolist(),
            "searched_s": self._searched_s,
            "search": None if self._search is None else self._search.get_state(),
        }, arrays

    def set_state(self, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Goes on from what `get_state` of a run with the same `key` returned."""

        def part(name: str) -> dict[str, NDArray[Any]]:
            prefix = f"{name}."
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        self._follow(np.array(values["base"], np.float64))
        self._best, self._best_score = Weights.of(part("best")), float(values["best_score"])
        self._learner.set_state(part("learner"))
        self._pool.set_state(part("samples"), values["sample_count"])
        self._rounds, self._step_count = values["rounds"], values["step_count"]
        self._stage, self._searched_s = values["stage"], values["searched_s"]
        self._rng.bit_generator.state = values["rng"]
        if values["search"] is None:
            self._search = None
        elif self._search is not None:
            self._search.set_state(values["search"])


def _digest_of(mesh: Mesh) -> str:
    """Returns a digest of what names leave open: costs, tasks, qualities and lengths."""
    quality_KT = mesh.catalog.quality_KT.tolist()
    text = repr((mesh.profile.tiers, mesh.catalog.tasks, quality_KT, mesh.lengths))
    return hashlib.sha256(text.encode()).hexdigest()


def _price_of(base_P: NDArray[np.float64]) -> dict[str, float]:
    """Returns the parameters of the price by name."""
    names = (parameter.name for parameter in PARAMETERS)
    return dict(zip(names, base_P[:PRICE_COUNT].tolist(), strict=True))
