"""What an online run is a function of, together with its records."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

from router.features import BASE_COLUMN, FEATURES, SCHEMA
from trainer.learning.online.baseline import Promise


class TrainingConfigError(ValueError):
    """A training config is wrong; `problems` has one line per mistake."""

    def __init__(self, problems: list[str]) -> None:
        """Keeps every mistake."""
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """Double DQN with time-spanning targets.

    Attributes:
        hidden_count: hidden units per layer, 1 to 1024.
        tau_deadlines: time constant of the discount in deadlines, > 0.
        horizon_deadlines: time an n-step return spans in deadlines, > 0.
        batch_size: transitions per step, >= 1.
        learning_rate: of Adam at the start, > 0.
        learning_rate_end: at the planned last step, > 0; open-ended runs stay at the start's.
        target_rate: share of the online network the target network takes over per step, (0, 1].
        huber_delta: error at which the loss turns linear, > 0.
        gradient_norm_limit: longest gradient, > 0.
        replay_capacity: transitions kept, >= batch_size.
        anchor: transitions that the network it starts from counts as (see
            anchored_double_dqn.py), >= 0; 0: nothing holds it there.
    """

    hidden_count: int = 32
    tau_deadlines: float = 0.7
    horizon_deadlines: float = 1.0
    batch_size: int = 256
    learning_rate: float = 1e-3
    learning_rate_end: float = 1e-4
    target_rate: float = 0.005
    huber_delta: float = 1.0
    gradient_norm_limit: float = 10.0
    replay_capacity: int = 200_000
    anchor: float = 0.0

    def __post_init__(self) -> None:
        """Checks every limit; raises TrainingConfigError with all mistakes."""
        problems = [
            f"{field.name}: must be above 0 (got {getattr(self, field.name)!r})"
            for field in dataclasses.fields(self)
            if field.name != "anchor" and not getattr(self, field.name) > 0
        ]
        if not self.anchor >= 0.0:
            problems.append(f"anchor: must be at least 0 (got {self.anchor!r})")
        if self.hidden_count > 1024:
            problems.append(f"hidden_count: must be at most 1024 (got {self.hidden_count})")
        if self.target_rate > 1.0:
            problems.append(f"target_rate: must be at most 1 (got {self.target_rate:g})")
        if self.replay_capacity < self.batch_size:
            problems.append("replay_capacity: must be at least batch_size")
        if problems:
            raise TrainingConfigError(problems)

    def as_dict(self) -> dict[str, Any]:
        """Returns the config as JSON values."""
        return dataclasses.asdict(self)


ONLINE_LEARNER = LearnerConfig(learning_rate=1e-4, batch_size=128, anchor=50_000.0)
"""For online runs: data are few and the start is good, so small steps, and the start counts as much
as all that a service holds in its replay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig:
    """What an online run needs besides its learner.

    Attributes:
        learner: the learner.
        deadline_s: deadline that sets the time scale, seconds, > 0.
        patience_s: longest wait for an outcome, seconds, > 0.
        order_s: longest wait for records of another router, seconds, >= 0; 0: nobody waits.
        sample_reuse: most times a transition is sampled on average, > 0.
        min_transitions: transitions before the first learner step, >= 1.
        feature_schema: schema learned on; records of another one only serve as rewards.
        feature_names: names of its features.
        availability_column: column that is 0 for candidates that must not be used.
        base_column: column of the score that the network corrects; None: it corrects nothing.
        seed: seed of sampling and of fresh weights.
    """

    learner: LearnerConfig
    deadline_s: float
    patience_s: float
    feature_schema: str
    feature_names: tuple[str, ...]
    availability_column: int
    base_column: int | None = None
    promise: Promise | None = None
    order_s: float = 0.0
    sample_reuse: float = 8.0
    min_transitions: int = 512
    seed: int = 0


def online_config(
    *,
    hidden_count: int,
    replay_capacity: int,
    deadline_s: float,
    patience_s: float,
    min_transitions: int,
    seed: int,
    order_s: float = 0.0,
) -> OnlineConfig:
    """Returns the config of an online run on the features and with the learner of the services."""
    names = tuple(feature.name for feature in FEATURES)
    return OnlineConfig(
        learner=replace(ONLINE_LEARNER, hidden_count=hidden_count, replay_capacity=replay_capacity),
        deadline_s=deadline_s,
        patience_s=patience_s,
        feature_schema=SCHEMA,
        feature_names=names,
        availability_column=names.index("availability"),
        base_column=BASE_COLUMN,
        promise=Promise(
            quality_column=names.index("quality"),
            on_time_column=names.index("on_time_probability"),
        ),
        order_s=order_s,
        min_transitions=min_transitions,
        seed=seed,
    )
