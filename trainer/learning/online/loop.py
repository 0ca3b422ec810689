"""Online learning: records in, snapshots out. No network, no clock of its own; files for its state.

What a record taught is *settled* once the replay that holds it has been saved; only then may the
stream forget it. Records that come again after a crash are recognised and settled at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.dqn.snapshot import Snapshot, load_snapshot, save_snapshot
from trainer.learning.checkpoint import load_checkpoint, save_checkpoint
from trainer.learning.descent import LearnerStateError
from trainer.learning.network import initial_weights
from trainer.learning.online.anchored_double_dqn import AnchoredLearner
from trainer.learning.online.baseline import RewardBaseline
from trainer.learning.online.config import OnlineConfig
from trainer.learning.online.double_dqn import DoubleDqnLearner
from trainer.learning.online.joining import (
    DecisionKey,
    DecisionRecord,
    OutcomeRecord,
    RecordJoiner,
    Step,
)
from trainer.learning.online.replay import Replay, Transitions
from trainer.learning.online.returns import steps_to_arrays, time_returns


@dataclass(frozen=True, slots=True)
class LoopStatus:
    """Where an online run stands.

    Attributes:
        step_count: learner steps done.
        transition_count: transitions taken in, ever.
        waiting_count: decisions that wait for their outcome or for their horizon.
        loss: mean loss of the last steps, None before the first.
        mean_reward: mean reward of recent requests, None before the first.
        gap_count: gaps seen in routers' sequence numbers.
        dropped_count: records that came too late or without their partner.
    """

    step_count: int
    transition_count: int
    waiting_count: int
    loss: float | None
    mean_reward: float | None
    gap_count: int
    dropped_count: int


class OnlineLoop:
    """Joins, keeps and learns from records; `save` makes it safe."""

    def __init__(
        self, config: OnlineConfig, *, path: Path | None = None, initial: bytes | None = None
    ) -> None:
        """Restores the state at `path` if there is one, else starts from `initial` or afresh.

        Raises:
            CheckpointError: the state at `path` is damaged.
            SnapshotError: `initial` is damaged or has another schema.
        """
        self._config = config
        self._path = path
        self._rng = np.random.default_rng(config.seed)
        count = len(config.feature_names)
        self._parent = ""
        self._base: dict[str, float] = {}
        self._schedule: dict[str, Any] = {}
        if initial is not None:
            snapshot = load_snapshot(initial, config.feature_schema)
            weights, self._parent = snapshot.weights, snapshot.version
            self._base, self._schedule = dict(snapshot.base), dict(snapshot.schedule)
        else:
            weights = initial_weights(count, config.learner.hidden_count, self._rng)
        kind = AnchoredLearner if config.learner.anchor > 0.0 else DoubleDqnLearner
        self._learner = kind(config.learner, weights, base_column=config.base_column)
        self._replay = Replay(capacity=config.learner.replay_capacity, feature_count=count)
        self._baseline = RewardBaseline()
        self._joiner = RecordJoiner(patience_s=config.patience_s)
        self._pending: list[Step] = []
        self._pending_baseline: list[float] = []
        self._unsaved: list[DecisionKey] = []
        self._settled: dict[str, tuple[int, int]] = {}
        self._loss: float | None = None
        self._mean_reward: float | None = None
        self._restore()

    @property
    def status(self) -> LoopStatus:
        """Where the run stands."""
        joiner = self._joiner
        return LoopStatus(
            step_count=self._learner.step_count,
            transition_count=self._replay.total_count,
            waiting_count=len(joiner) + len(self._pending),
            loss=self._loss,
            mean_reward=self._mean_reward,
            gap_count=joiner.gap_count,
            dropped_count=joiner.late_count + joiner.orphan_count + joiner.expired_count,
        )

    def ingest(
        self, decisions: Sequence[DecisionRecord], outcomes: Sequence[OutcomeRecord]
    ) -> list[DecisionKey]:
        """Takes in records, in any order; returns the keys that are settled already."""
        known: list[DecisionKey] = []
        for decision in decisions:
            if self._is_settled(decision.key):
                known.append(decision.key)
            else:
                self._joiner.add_decision(decision)
        for outcome in outcomes:
            if self._is_settled(outcome.key):
                known.append(outcome.key)
            else:
                self._joiner.add_outcome(outcome)
        for step in self._joiner.release():
            baseline = 0.0
            if step.counts:
                baseline = self._baseline.observe(step.decision.task, step.reward)
                self._mean_reward = (
                    step.reward
                    if self._mean_reward is None
                    else self._mean_reward + 0.01 * (step.reward - self._mean_reward)
                )
            self._pending.append(step)
            self._pending_baseline.append(baseline)
        self._complete()
        return known

    def learn(self, budget_s: float, monotonic_s: Callable[[], float]) -> int:
        """Does learner steps for at most `budget_s` seconds; returns how many.

        Stops early where the data has been sampled often enough.
        """
        config = self._config
        if len(self._replay) < max(config.min_transitions, 1):
            return 0
        batch = config.learner.batch_size
        allowed = int(config.sample_reuse * self._replay.total_count / batch)
        end_s = monotonic_s() + budget_s
        done = 0
        self._learner.transition_count = len(self._replay)
        while self._learner.step_count < allowed and monotonic_s() < end_s:
            loss = self._learner.step(self._replay.sample(batch, self._rng))
            self._loss = loss if self._loss is None else self._loss + 0.02 * (loss - self._loss)
            done += 1
        return done

    def save(self) -> list[DecisionKey]:
        """Saves everything and returns the keys that are settled by it.

        Raises:
            CheckpointError: nothing was saved; the former state stays valid, nothing is settled.
        """
        settled = dict(self._settled)
        for router, epoch, sequence in self._unsaved:
            settled[router] = max(settled.get(router, (0, 0)), (epoch, sequence))
        if self._path is not None:
            meta = {
                "parent": self._parent,
                "feature_schema": self._config.feature_schema,
                "baseline": self._baseline.get_state(),
                "settled": settled,
                "rng": self._rng.bit_generator.state,
                "mean_reward": self._mean_reward,
            }
            arrays = {f"learner.{k}": v for k, v in self._learner.get_state().items()}
            arrays["replay"] = np.frombuffer(self._replay.to_bytes(), dtype=np.uint8)
            save_checkpoint(self._path, meta, arrays)
        keys, self._unsaved, self._settled = self._unsaved, [], settled
        return keys

    def snapshot(self, description: Mapping[str, Any] | None = None) -> bytes:
        """Returns the present policy as a snapshot."""
        config = self._config
        training = {
            "mode": "online",
            "seed": config.seed,
            "parent": self._parent,
            "step_count": self._learner.step_count,
            "transition_count": self._replay.total_count,
            "config": config.learner.as_dict(),
            **(description or {}),
        }
        evaluation = {} if self._mean_reward is None else {"mean_reward": self._mean_reward}
        return save_snapshot(
            Snapshot(
                self._learner.weights(),
                config.feature_schema,
                config.feature_names,
                training=training,
                evaluation=evaluation,
                fleet={"deadline_s": config.deadline_s},
                base=self._base,
                schedule=self._schedule,
            )
        )

    def _is_settled(self, key: DecisionKey) -> bool:
        router, epoch, sequence = key
        return self._settled.get(router, (0, 0)) >= (epoch, sequence)

    def _complete(self) -> None:
        """Moves the steps whose returns are final from pending to the replay."""
        if not self._pending:
            return
        config = self._config
        time_N, reward_N, gap_N = steps_to_arrays(self._pending, self._pending_baseline)
        returns = time_returns(
            time_N,
            reward_N,
            gap_N,
            config.learner.tau_deadlines * config.deadline_s,
            config.learner.horizon_deadlines * config.deadline_s,
        )
        final_N = returns.complete_N | returns.dead_N
        # Ends never fall back in time, so what is final comes first.
        count = int(np.argmin(final_N)) if not final_N.all() else len(final_N)
        rows = [
            i
            for i in range(count)
            if returns.complete_N[i]
            and self._is_usable(self._pending[i])
            and self._usable_features(self._pending[int(returns.next_N[i])])
        ]
        if rows:
            nexts = [self._pending[int(returns.next_N[i])].decision for i in rows]
            x, allowed = self._pad([self._pending[i].decision for i in rows])
            next_x, next_allowed = self._pad(nexts)
            action = np.array([self._pending[i].decision.action for i in rows], dtype=np.int64)
            allowed[np.arange(len(rows)), action] = True
            self._replay.append(
                Transitions(
                    x,
                    allowed,
                    action,
                    returns.return_N[rows].astype(np.float32),
                    returns.discount_N[rows].astype(np.float32),
                    next_x,
                    next_allowed,
                    self._shortfalls([self._pending[i] for i in rows]),
                )
            )
        self._unsaved += [step.decision.key for step in self._pending[:count]]
        del self._pending[:count]
        del self._pending_baseline[:count]

    def _shortfalls(self, steps: Sequence[Step]) -> NDArray[np.float32]:
        """Returns `shortfall_B` of steps that have features."""
        promise = self._config.promise
        if promise is None:
            return np.full(len(steps), np.nan, np.float32)
        chosen = [
            step.decision.features_CF[step.decision.action]
            for step in steps
            if step.decision.features_CF is not None
        ]
        return promise.shortfalls(np.stack(chosen), np.array([step.reward for step in steps]))

    def _is_usable(self, step: Step) -> bool:
        return step.counts and self._usable_features(step)

    def _usable_features(self, step: Step) -> bool:
        decision = step.decision
        return (
            decision.features_CF is not None
            and decision.feature_schema == self._config.feature_schema
            and decision.features_CF.shape[1] == len(self._config.feature_names)
            and decision.action < len(decision.features_CF)
            and bool(np.isfinite(decision.features_CF).all())
        )

    def _pad(
        self, decisions: Sequence[DecisionRecord]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Returns features and allowed candidates of decisions on fleets of any size."""
        features = [d.features_CF for d in decisions if d.features_CF is not None]
        width = max(len(x_CF) for x_CF in features)
        x = np.zeros((len(features), width, len(self._config.feature_names)), np.float32)
        for row, x_CF in enumerate(features):
            x[row, : len(x_CF)] = x_CF
        allowed = x[:, :, self._config.availability_column] > 0.0
        # A state in which nothing is usable has no best action; any row will do there.
        allowed[~allowed.any(axis=1), 0] = True
        return x, allowed

    def _restore(self) -> None:
        found = load_checkpoint(self._path) if self._path is not None else None
        if found is None:
            return
        meta, arrays = found
        if meta.get("feature_schema") != self._config.feature_schema:
            return  # what was learned on other features is of no use
        # A newer parent starts afresh from its weights, but the experience is still good.
        self._replay.restore(arrays["replay"].tobytes())
        self._baseline.set_state(meta["baseline"])
        self._settled = {router: (int(p[0]), int(p[1])) for router, p in meta["settled"].items()}
        self._mean_reward = meta["mean_reward"]
        if meta["parent"] == self._parent:
            prefix = "learner."
            saved = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
            try:
                self._learner.set_state(saved)
            except LearnerStateError:
                return  # of a learner with other parts: afresh from the parent's weights
            self._rng.bit_generator.state = meta["rng"]
