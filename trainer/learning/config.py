"""What a training run is a function of, together with its seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


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
        anchor: transitions that the network it starts from counts as (see anchored.py), >= 0;
            0: nothing holds it there.
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
