"""Online learning: records in, snapshots out. No network, no clock of its own; files for its state.

What a record taught is *settled* once the replay that holds it has been saved; only then may the
stream forget it. Records that come again after a crash are recognised and settled at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.dqn.snapshot import Snapshot, load_snapshot, save_snapshot
from router.types import is_finite_number
from trainer.learning.checkpoint import (
    OvertakenError,
    damaged_of,
    load_checkpoint,
    previous_of,
    remove_leftovers,
    save_checkpoint,
    set_aside,
)
from trainer.learning.descent import DivergedError, LearnerStateError
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
from trainer.learning.online.processes import ProcessBook, ProcessKey, ProcessRecord
from trainer.learning.online.replay import MAX_CANDIDATES, Replay, Transitions
from trainer.learning.online.returns import steps_to_arrays, time_returns
from trainer.learning.online.settled import SettledKeys

_BAD_STATE = (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
"""What a state that is none ends in, CheckpointError and ReplayError among it."""
_MOST_SPANS = 64
"""Spans of time that were dropped last and are remembered."""


@dataclass(frozen=True, slots=True)
class LoopStatus:
    """Where an online run stands.

    Attributes:
        step_count: learner steps done.
        transition_count: transitions taken in, ever.
        waiting_count: decisions that wait for their outcome or for their horizon.
        loss: mean loss of the last steps, None before the first.
        mean_reward: mean reward of recent requests, None before the first.
        missing_count: decisions of routers that never came, by their numbers, as of the last save.
        cut_count: router processes that ended without a word; what they had in hand is lost.
        dropped_counts: records that were of no use, by reason: `late` came after its time, `again`
            was there already, `unanswered` never had an outcome; since the state was begun.
        told_decisions: decisions that routers told they had dropped.
        told_outcomes: outcomes likewise.
        open_processes: router processes of which more may come.
        problems: what went wrong since the last look: a damaged state, a step undone.
    """

    step_count: int
    transition_count: int
    waiting_count: int
    loss: float | None
    mean_reward: float | None
    missing_count: int = 0
    cut_count: int = 0
    dropped_counts: Mapping[str, int] = field(default_factory=dict)
    told_decisions: int = 0
    told_outcomes: int = 0
    open_processes: tuple[ProcessKey, ...] = ()
    problems: tuple[str, ...] = ()


class OnlineLoop:
    """Joins, keeps and learns from records; `save` makes it safe."""

    def __init__(
        self, config: OnlineConfig, *, path: Path | None = None, initial: bytes | None = None
    ) -> None:
        """Restores the state at `path` if there is one, else starts from `initial` or afresh.

        A damaged state is set aside, and the one saved before it serves.

        Raises:
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
        self._joiner = RecordJoiner(patience_s=config.patience_s, order_s=config.order_s)
        self._processes = ProcessBook()
        self._pending: list[Step] = []
        self._pending_baseline: list[float] = []
        self._unsaved: list[DecisionKey] = []
        # Released by the joiner and not saved yet.
        self._held: set[DecisionKey] = set()
        self._settled = SettledKeys()
        # Of decisions made in these spans of time nothing is learned, whenever they come.
        self._spans: list[tuple[float, float]] = []
        # What a state restored had dropped before, and what came again since.
        self._dropped_before = Counter[str]()
        self._again_count = 0
        self._missing_count = 0
        self._file: tuple[int, int] | None = None
        self._problems: list[str] = []
        self._has_gone_back = False
        self._loss: float | None = None
        self._mean_reward: float | None = None
        self._start = self._learner.get_state()
        self._restore()
        self._good = self._learner.get_state()

    @property
    def status(self) -> LoopStatus:
        """Where the run stands."""
        problems, self._problems = tuple(self._problems), []
        return LoopStatus(
            step_count=self._learner.step_count,
            transition_count=self._replay.total_count,
            waiting_count=len(self._joiner) + len(self._pending),
            loss=self._loss,
            mean_reward=self._mean_reward,
            missing_count=self._missing_count,
            cut_count=self._processes.cut_count,
            dropped_counts=self._dropped(),
            told_decisions=self._processes.dropped_decisions,
            told_outcomes=self._processes.dropped_outcomes,
            open_processes=self._processes.open,
            problems=problems,
        )

    @property
    def _corrects(self) -> list[dict[str, Any]]:
        """Parameters of the price that the network corrects, and its scheduled price."""
        return [self._base, self._schedule]

    def _dropped(self) -> dict[str, int]:
        joiner, before = self._joiner, self._dropped_before
        return {
            "late": before["late"] + joiner.late_count,
            "again": before["again"] + self._again_count,
            "unanswered": before["unanswered"] + joiner.expired_count,
        }

    def ingest(
        self,
        decisions: Sequence[DecisionRecord],
        outcomes: Sequence[OutcomeRecord],
        processes: Sequence[ProcessRecord] = (),
    ) -> list[DecisionKey]:
        """Takes in records, in any order; returns the keys that are settled already.

        A ticket may be closed at two routers: the first outcome of a decision counts.
        """
        known: list[DecisionKey] = []
        for decision in decisions:
            self._processes.see(decision.key[:2])
            if decision.key in self._settled:
                known.append(decision.key)
            elif decision.key in self._held:
                self._again_count += 1
            elif not self._joiner.add_decision(decision):
                # Dropped for good, so that it is neither taken for missing nor taken in later.
                self._held.add(decision.key)
                self._unsaved.append(decision.key)
        for process in processes:
            self._processes.take(process)
            if process.is_end or process.is_cut:
                self._joiner.forget_router(process.process[0])
            if not process.is_cut:
                self._unsaved.append(process.key)
        for outcome in outcomes:
            if outcome.key in self._settled:
                known.append(outcome.key)
            elif outcome.key in self._held:
                self._again_count += 1
            else:
                self._joiner.add_outcome(outcome)
        for step in map(self._allowed, self._joiner.release()):
            self._held.add(step.decision.key)
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
            try:
                loss = self._learner.step(self._replay.sample(batch, self._rng))
            except DivergedError as error:
                self._learner.set_state(self._good)
                self._go_back(str(error))
                break
            self._loss = loss if self._loss is None else self._loss + 0.02 * (loss - self._loss)
            done += 1
        return done

    def save(self) -> list[DecisionKey]:
        """Saves everything and returns the keys that are settled by it.

        Raises:
            CheckpointError: nothing was saved; the former state stays valid, nothing is settled.
            OvertakenError: likewise, and nothing will ever be saved from here.
        """
        settled = self._settled.copy()
        for key in self._unsaved:
            if key[2]:  # 0: what a process told of itself
                settled.add(key)
        learner = self._learner.get_state()
        if not _is_finite(learner):
            self._go_back("the network is not finite")
            learner = self._good
        if self._path is not None:
            meta = {
                "parent": self._parent,
                "feature_schema": self._config.feature_schema,
                "corrects": self._corrects,
                "baseline": self._baseline.get_state(),
                "settled": settled.get_state(),
                "processes": self._processes.get_state(),
                "dropped": self._dropped(),
                "spans": self._spans,
                "rng": self._rng.bit_generator.state,
                "mean_reward": self._mean_reward,
            }
            arrays = {f"learner.{k}": v for k, v in learner.items()}
            arrays["replay"] = np.frombuffer(self._replay.to_bytes(), dtype=np.uint8)
            self._check_is_ours(self._path)
            save_checkpoint(self._path, meta, arrays, keep_previous=True)
            self._file = _identity(self._path)
        self._good = learner
        keys, self._unsaved, self._settled = self._unsaved, [], settled
        self._held.difference_update(keys)
        self._missing_count = settled.missing_count
        return keys

    def _check_is_ours(self, path: Path) -> None:
        """Raises OvertakenError if another process has saved: what that one settled is not here.

        A trainer that stood still for so long that another one took over may wake up in a save.
        """
        found = _identity(path)
        if found is not None and found != self._file:
            raise OvertakenError(f"{path}: another process has saved there; ours is out of date")

    def _go_back(self, reason: str) -> None:
        """Takes the last saved network again; says so the first time."""
        self._learner.set_state(self._good)
        if not self._has_gone_back:
            self._problems.append(f"went back to the last saved network: {reason}")
        self._has_gone_back = True

    def drop(self, since_s: float, until_s: float, now_s: float = math.inf) -> tuple[int, int]:
        """Drops what the replay holds of a span of time, and starts the network afresh on the rest.

        Nor is anything of it learned that waits here, or that has not been read yet.

        Args:
            since_s: start of the span, seconds since 1970.
            until_s: end of the span, itself not in it.
            now_s: the time, seconds since 1970; what is decided later is not of the span.

        Returns:
            How many transitions were dropped, and how many are left.
        """
        dropped = self._replay.drop(since_s, until_s)
        # Routers' clocks may be ahead.
        last_s = math.nextafter(max(now_s, self._joiner.newest_s), math.inf)
        self._spans = [*self._spans, (since_s, min(until_s, last_s))][-_MOST_SPANS:]
        self._pending = [self._allowed(step) for step in self._pending]
        # What was learned from them cannot be told from the rest.
        done = {"step_count": np.array(self._learner.step_count, np.int64)}
        self._good = {**self._start, **done}
        self._learner.set_state(self._good)
        self._baseline = RewardBaseline()
        self._mean_reward = self._loss = None
        return dropped, len(self._replay)

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

    def _allowed(self, step: Step) -> Step:
        """Returns a step, as a cancelled one if it is of a span that was dropped."""
        made_s = step.decision.time_s
        if any(since_s <= made_s < until_s for since_s, until_s in self._spans):
            return step._replace(reward=0.0, counts=False)
        return step

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
                    time_N[rows],
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
            and len(decision.features_CF) <= MAX_CANDIDATES
            and bool(np.isfinite(decision.features_CF).all())
        )

    def _pad(
        self, decisions: Sequence[DecisionRecord]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Returns features and allowed candidates of decisions on fleets of any size.

        Records do not tell what a tier pin or a quality floor closed. So an action that was the
        best of what was open counts as an explored one, which it is to requests without a pin; and
        a later decision's closed candidates raise the bootstrap alike for every action before it.
        """
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
        """Takes the newest state that is good; sets aside what is not."""
        if self._path is None:
            return
        remove_leftovers(self._path)
        for path in (self._path, previous_of(self._path)):
            try:
                found = load_checkpoint(path)
                if found is not None:
                    self._apply(*found)
                    break
            except _BAD_STATE as error:
                set_aside(path)
                self._problems.append(f"{error}; kept as {damaged_of(path).name}")
        self._file = _identity(self._path)

    def _apply(self, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        if meta.get("feature_schema") != self._config.feature_schema:
            return  # what was learned on other features is of no use
        settled, baseline, rng = SettledKeys(), RewardBaseline(), np.random.default_rng(0)
        settled.set_state(meta["settled"])
        # A state of an earlier version lacks these three.
        processes = ProcessBook()
        if "processes" in meta:
            processes.set_state(meta["processes"])
        dropped = Counter({str(k): int(v) for k, v in meta.get("dropped", {}).items()})
        spans = _spans(meta.get("spans", ()))
        baseline.set_state(meta["baseline"])
        mean_reward, rng.bit_generator.state = meta["mean_reward"], meta["rng"]
        if mean_reward is not None and not is_finite_number(mean_reward):
            raise ValueError(f"mean_reward is {mean_reward!r:.40}")
        # A newer parent starts afresh from its weights, but the experience is still good: if it
        # corrects the same price, for by that its features were computed. Nothing after this fails,
        # so that a bad state leaves nothing of itself.
        if meta.get("corrects", self._corrects) == self._corrects:
            self._replay.restore(arrays["replay"].tobytes())
        self._settled, self._baseline, self._mean_reward = settled, baseline, mean_reward
        self._processes, self._dropped_before, self._spans = processes, dropped, spans
        self._missing_count = settled.missing_count
        if meta["parent"] == self._parent:
            prefix = "learner."
            saved = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
            if not _is_finite(saved):
                self._problems.append("the saved network is not finite: afresh from its parent")
                return
            try:
                self._learner.set_state(saved)
            except LearnerStateError:
                return  # of a learner with other parts: afresh from the parent's weights
            self._rng = rng


def _spans(values: Iterable[Any]) -> list[tuple[float, float]]:
    """Returns spans of time; raises TypeError or ValueError for what is none."""
    spans = [(since_s, until_s) for since_s, until_s in values]
    if not all(is_finite_number(each) for span in spans for each in span):
        raise ValueError(f"spans: {spans!r:.40} are no spans of time")
    return spans[-_MOST_SPANS:]


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns what tells a saved file from the one before it; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_finite(state: Mapping[str, NDArray[Any]]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in state.values())
