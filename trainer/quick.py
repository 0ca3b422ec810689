"""Training a policy for one mesh in a minute, and scoring policies in the simulator.

Policy iteration on paired returns (`paired.py`). The network starts as an imitation of the price
policy. Futures are first driven by price, later by the best network so far; states are those the
newest network leads to, and others. The mesh is drawn anew for every episode (`scenario.py`). Every
few rounds the network is scored on validation seeds and the best one is kept: a bad round cannot do
harm. The final evaluation, beside the baselines, is on seeds used for nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from router.catalog import QualityTable
from router.dqn.snapshot import Snapshot, Weights, load_snapshot, save_snapshot
from router.features import FEATURE_COUNT, FEATURES, SCHEMA
from router.policies.registry import make_policy
from router.profile import LatencyProfile
from router.types import Task
from trainer.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from trainer.learner import initial_weights
from trainer.paired import PairedSamples, paired_samples, scored_samples
from trainer.paired_learner import PairedLearner
from trainer.scenario import Mesh, Scenario, evaluation_scenarios, mean_scores, training_scenario
from trainer.simulation.simulate import PolicySpec, simulate
from trainer.simulation.workload import Lengths

Progress = Callable[[float, dict[str, Any]], None]

HIDDEN_COUNT = 32
HORIZON_DEADLINES = 2.0
EPSILON = 0.15
KEPT_SAMPLES = 60_000
BATCH_SIZE = 256
IMITATED_EPISODES = 24
IMITATION_STEPS = 600
DECISIONS_PER_EPISODE = 60_000
"""Simulated decisions an episode's futures may take, about."""
VALIDATION_SEEDS = (700_001, 700_002)
TEST_SEEDS = (800_001, 800_002, 800_003)
AVAILABILITY_GOAL = 0.99
MISS_COST = 0.4
"""A miss costs this much beside its reward of zero: models err, and a deadline is a promise."""
CHECKPOINT_INTERVAL_S = 15.0
EVALUATION_SHARE = 0.12
"""Share of the budget kept for the final evaluation."""


def train_policy(
    *,
    profile: LatencyProfile,
    quality: QualityTable,
    tasks: Sequence[Task],
    deadline_s: float,
    devices: int | Sequence[Sequence[str]],
    seed: int,
    budget_s: float,
    progress: Progress | None = None,
    max_rate_rps: float | None = None,
    initial_snapshot: bytes | None = None,
    lengths: Lengths | None = None,
    episode_requests: int = 2_000,
    checkpoint: Path | None = None,
    rounds: int | None = None,
) -> bytes:
    """Trains a policy for one mesh and returns its snapshot, evaluation included.

    Args:
        profile: latency profile of a device, tiers from lowest quality to highest.
        quality: quality table.
        tasks: the tasks.
        deadline_s: deadline, seconds.
        devices: number of devices with every tier, or the tiers of each device.
        seed: of everything drawn; the machine's speed decides how many rounds fit the budget.
        budget_s: seconds to train and evaluate, compiling not counted.
        progress: called with the share done and facts, at least every few seconds.
        max_rate_rps: highest rate to train for; None: 0.55 of what the smallest tier can carry.
        initial_snapshot: weights to start from.
        lengths: distribution of lengths; None: OPT's setting or short texts, by the profile's name.
        episode_requests: requests per training episode, about.
        checkpoint: file the run's state is kept in; a run that was killed goes on from it, and it
            is deleted when the run is complete. None: no checkpoint.
        rounds: rounds to do instead of what the budget allows: the result is then a function of
            the arguments alone, whatever the machine's speed.

    Raises:
        CheckpointError: the checkpoint is damaged, of another run, or cannot be written.
        ScenarioError: the mesh cannot be simulated.
        SnapshotError: `initial_snapshot` is damaged or has another schema.
    """
    torch.set_num_threads(1)
    mesh = Mesh.build(
        profile=profile,
        quality=quality,
        tasks=tasks,
        deadline_s=deadline_s,
        devices=devices,
        max_rate_rps=max_rate_rps,
        lengths=lengths,
    )
    report = progress or (lambda _share, _facts: None)
    report(0.0, {"phase": "compile"})
    run = _Training(mesh, seed, initial_snapshot, episode_requests)
    run.warm_up()
    used_s = run.restore(checkpoint)
    start_s = time.monotonic() - used_s
    if initial_snapshot is None and not used_s:
        run.imitate()
    saved_s = time.monotonic()
    train_s = budget_s * (1.0 - EVALUATION_SHARE)
    while (done := run.done(time.monotonic() - start_s, train_s, rounds)) < 1.0:
        run.round(done)
        elapsed_s = time.monotonic() - start_s
        if checkpoint is not None and time.monotonic() - saved_s > CHECKPOINT_INTERVAL_S:
            run.save(checkpoint, elapsed_s)
            saved_s = time.monotonic()
        report(
            (1.0 - EVALUATION_SHARE) * run.done(elapsed_s, train_s, rounds),
            run.facts(elapsed_s),
        )
    evaluation = run.evaluate()
    report(1.0, {**run.facts(time.monotonic() - start_s), "phase": "done", **evaluation})
    blob = run.snapshot(evaluation)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return blob


class _Training:
    """State of one training run."""

    def __init__(self, mesh: Mesh, seed: int, initial: bytes | None, episode_requests: int) -> None:
        self._mesh = mesh
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._episode_requests = episode_requests
        self._parent = ""
        price = PolicySpec.of(make_policy("price", mesh.catalog))
        if initial is not None:
            snapshot = load_snapshot(initial, SCHEMA, "initial snapshot")
            weights, self._parent = snapshot.weights, snapshot.version
        else:
            weights = initial_weights(FEATURE_COUNT, HIDDEN_COUNT, self._rng)
        self._price = price
        self._driver = PolicySpec.dqn(weights) if initial is not None else price
        self._learner = PairedLearner(weights)
        self._best: Weights = weights
        self._validation = evaluation_scenarios(mesh, VALIDATION_SEEDS, requests=600)
        self._best_score = self._score(weights) if initial is not None else -np.inf
        self._price_score = _score(price, self._validation)
        self._samples: list[PairedSamples] = []
        self._imitated: PairedSamples | None = None
        self._sample_count = 0
        self._rounds = 0
        self._loss: float | None = None

    def warm_up(self) -> None:
        """Compiles what the rounds use, so that the budget is spent on learning."""
        scenario = training_scenario(self._mesh, np.random.default_rng(0), 60)
        self._collect(scenario, self._driver, self._driver, np.random.default_rng(0), 2)
        _score(PolicySpec.dqn(self._best), self._validation[:1])

    def imitate(self) -> None:
        """Fits the fresh network to the price policy's scores: a start that is not nowhere."""
        samples = []
        for _ in range(IMITATED_EPISODES):
            scenario = training_scenario(self._mesh, self._rng, self._episode_requests // 2)
            samples.append(
                scored_samples(
                    scenario,
                    self._price,
                    sample_count=200,
                    epsilon=float(self._rng.choice([0.0, 0.2, 0.5])),
                    mix_T=self._mix(),
                )
            )
        self._imitated = _joined(samples)
        for step in range(IMITATION_STEPS):
            self._learner.set_learning_rate(3e-3 * 0.1 ** (step / IMITATION_STEPS))
            self._learner.step(self._batch(self._imitated, BATCH_SIZE))
        self._validate()

    def done(self, elapsed_s: float, train_s: float, rounds: int | None) -> float:
        """Returns the share of the training that is done, 0 to 1."""
        share = elapsed_s / train_s if rounds is None else self._rounds / rounds
        return min(1.0, share)

    def round(self, done: float) -> None:
        """Collects samples from a few episodes, learns, validates, and keeps the better network."""
        for _ in range(6):
            scenario = training_scenario(self._mesh, self._rng, self._episode_requests)
            samples = self._collect(scenario, *self._drivers(), self._rng, 32)
            if len(samples.x_BCF):
                self._samples.append(samples)
                self._sample_count += len(samples.x_BCF)
        self._trim()
        pool = self._pool()
        self._learner.set_learning_rate(2e-3 * 0.1**done)
        for _ in range(60):
            loss = self._learner.step(self._mixed_batch(pool, done))
            self._loss = loss if self._loss is None else self._loss + 0.05 * (loss - self._loss)
        self._rounds += 1
        if self._rounds % 2 == 0:
            self._validate()

    def save(self, path: Path, elapsed_s: float) -> None:
        """Writes the state to a checkpoint."""
        pool = self._pool()
        arrays: dict[str, NDArray[Any]] = {
            f"learner.{k}": v for k, v in self._learner.get_state().items()
        }
        arrays |= {f"best.{k}": np.asarray(v) for k, v in self._best._asdict().items()}
        arrays |= {f"samples.{k}": v for k, v in pool._asdict().items()}
        if self._imitated is not None:
            arrays |= {f"imitated.{k}": v for k, v in self._imitated._asdict().items()}
        meta = {
            "key": self._key(),
            "elapsed_s": elapsed_s,
            "rounds": self._rounds,
            "sample_count": self._sample_count,
            "best_score": self._best_score if np.isfinite(self._best_score) else None,
            "rng": self._rng.bit_generator.state,
        }
        save_checkpoint(path, meta, arrays)

    def restore(self, path: Path | None) -> float:
        """Goes on from a checkpoint if there is one; returns the seconds it had used."""
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
        self._samples = [PairedSamples(**part("samples."))]
        imitated = part("imitated.")
        self._imitated = PairedSamples(**imitated) if imitated else None
        self._rounds, self._sample_count = meta["rounds"], meta["sample_count"]
        self._rng.bit_generator.state = meta["rng"]
        if meta["best_score"] is not None:
            self._best_score = meta["best_score"]
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
        ]

    def facts(self, elapsed_s: float) -> dict[str, Any]:
        """Returns what progress shows."""
        return {
            "phase": "train",
            "step_count": self._learner.step_count,
            "steps_per_second": self._learner.step_count / max(elapsed_s, 1e-3),
            "transition_count": self._sample_count,
            "loss": self._loss,
            "epsilon": EPSILON,
            "score": None if np.isinf(self._best_score) else self._best_score,
            "mean_reward": None if np.isinf(self._best_score) else max(0.0, self._best_score),
            "price_score": self._price_score,
        }

    def evaluate(self) -> dict[str, Any]:
        """Returns scores on the test seeds, the baselines' beside the policy's."""
        self._validate()
        scenarios = evaluation_scenarios(self._mesh, TEST_SEEDS, requests=800)
        tiers = self._mesh.catalog.tiers
        names = ("price", "greedy", f"static-{tiers[-1]}", f"static-{tiers[0]}")
        found = {
            name: _mean(PolicySpec.of(make_policy(name, self._mesh.catalog)), scenarios)
            for name in names
        }
        own = _mean(PolicySpec.dqn(self._best), scenarios)
        zeroed = _mean(PolicySpec.dqn(self._best.zeroed()), scenarios)
        return {**own, "validation_score": self._best_score, "zeroed": zeroed, "baselines": found}

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
                    "method": "imitation of price, then policy iteration on paired returns",
                    "seed": self._seed,
                    "parent": self._parent,
                    "rounds": self._rounds,
                    "step_count": self._learner.step_count,
                    "transition_count": self._sample_count,
                    "hidden_count": HIDDEN_COUNT,
                    "horizon_deadlines": HORIZON_DEADLINES,
                    "epsilon": EPSILON,
                    "episode_requests": self._episode_requests,
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
            )
        )

    def _drivers(self) -> tuple[PolicySpec, PolicySpec]:
        """Returns what drives the next episode and its futures.

        A network must meet the states it leads to itself (as in DAgger, arXiv 1011.0686), not only
        the orderly ones of a good policy: half of the episodes are driven by the newest one.
        Futures are driven by the best policy known, or by the same one.
        """
        draw = self._rng.random()
        episode = self._driver
        if draw < 0.5 and self._learner.step_count:
            episode = PolicySpec.dqn(self._learner.weights())
        elif draw < 0.7:
            episode = self._price
        return episode, self._driver if self._rng.random() < 0.7 else episode

    def _collect(
        self,
        scenario: Scenario,
        episode: PolicySpec,
        future: PolicySpec,
        rng: np.random.Generator,
        count: int,
    ) -> PairedSamples:
        # Futures of busy scenarios are long; they get fewer of them, for the same time.
        rate_rps = len(scenario.workload) / scenario.workload.duration_s
        tiers = len(self._mesh.catalog.tiers)
        # Near saturation a backlog outlives its deadline by far, and so does a decision's harm.
        fill = min(1.0, rate_rps / self._mesh.small_rps)
        horizon_s = (HORIZON_DEADLINES + 6.0 * fill**2) * self._mesh.deadline_s
        decisions = rate_rps * horizon_s * (tiers + 1)
        count = min(count, max(6, int(DECISIONS_PER_EPISODE / max(decisions, 1.0))))
        return paired_samples(
            scenario,
            episode,
            rng,
            future=future,
            sample_count=count,
            horizon_s=horizon_s,
            epsilon=EPSILON if rng.random() < 0.7 else 0.0,
            mix_T=self._mix(),
            miss_cost=MISS_COST,
        )

    def _validate(self) -> None:
        weights = self._learner.weights()
        score = self._score(weights)
        if score > self._best_score:
            self._best, self._best_score = weights, score
        self._choose_driver()

    def _choose_driver(self) -> None:
        """Has futures driven by the best network once it is about as good as price."""
        if self._best_score >= self._price_score - 0.02:
            self._driver = PolicySpec.dqn(self._best)

    def _mix(self) -> tuple[float, ...]:
        """Returns a random tier mix for one episode's exploration."""
        tiers = len(self._mesh.catalog.tiers)
        return tuple(self._rng.dirichlet(np.full(tiers, 0.7)).tolist())

    def _batch(self, pool: PairedSamples, count: int) -> PairedSamples:
        rows = self._rng.integers(len(pool.x_BCF), size=count)
        return PairedSamples(*(part[rows] for part in pool))

    def _mixed_batch(self, pool: PairedSamples, done: float) -> PairedSamples:
        """Returns a batch of returns, at first half of it imitated scores: few returns mislead."""
        imitated = int(0.5 * (1.0 - done) ** 2 * BATCH_SIZE) if self._imitated is not None else 0
        batch = self._batch(pool, BATCH_SIZE - imitated)
        if self._imitated is None or not imitated:
            return batch
        return _joined([batch, self._batch(self._imitated, imitated)])

    def _pool(self) -> PairedSamples:
        return _joined(self._samples)

    def _score(self, weights: Weights) -> float:
        return _score(PolicySpec.dqn(weights), self._validation)

    def _trim(self) -> None:
        """Drops the oldest samples beyond the bound: they are of worse policies' futures."""
        kept = sum(len(part.x_BCF) for part in self._samples)
        while kept > KEPT_SAMPLES:
            kept -= len(self._samples.pop(0).x_BCF)


def evaluate_policy(
    *,
    profile: LatencyProfile,
    quality: QualityTable,
    tasks: Sequence[Task],
    deadline_s: float,
    devices: int | Sequence[Sequence[str]],
    policy: str,
    snapshot: bytes | None = None,
    seeds: Sequence[int] = TEST_SEEDS,
    max_rate_rps: float | None = None,
    lengths: Lengths | None = None,
) -> dict[str, float]:
    """Returns mean performance and availability of a policy over rates and bursts of one mesh.

    Raises:
        UnknownPolicyError: unknown name.
        SnapshotError: a damaged snapshot.
    """
    mesh = Mesh.build(
        profile=profile,
        quality=quality,
        tasks=tasks,
        deadline_s=deadline_s,
        devices=devices,
        max_rate_rps=max_rate_rps,
        lengths=lengths,
    )
    if snapshot is not None:
        spec = PolicySpec.dqn(load_snapshot(snapshot, SCHEMA).weights)
    else:
        spec = PolicySpec.of(make_policy(policy, mesh.catalog))
    return _mean(spec, evaluation_scenarios(mesh, seeds, requests=800))


def _joined(samples: Sequence[PairedSamples]) -> PairedSamples:
    return PairedSamples(*(np.concatenate(parts) for parts in zip(*samples, strict=True)))


def _run(spec: PolicySpec, scenarios: Sequence[Scenario]) -> tuple[Any, Any]:
    performance, availability = [], []
    for scenario in scenarios:
        result = simulate(scenario.config, scenario.workload, spec, scenario.seed)
        performance.append(result.performance())
        availability.append(result.availability())
    return np.array(performance), np.array(availability)


def _mean(spec: PolicySpec, scenarios: Sequence[Scenario]) -> dict[str, float]:
    return mean_scores(*_run(spec, scenarios))


def _score(spec: PolicySpec, scenarios: Sequence[Scenario]) -> float:
    """Returns mean performance, less twice what availability lacks of its goal."""
    performance_S, availability_S = _run(spec, scenarios)
    lacking = np.maximum(0.0, AVAILABILITY_GOAL - availability_S)
    return float((performance_S - 2.0 * lacking).mean())
