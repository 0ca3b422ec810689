"""Terms of a decision: tasks and requests, and the errors of bad input."""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from router.messages import one_line

NO_TIER_PIN = -1
"""Value of `Request.tier_pin` that lets the policy choose the tier."""
TOKEN_INTERVAL_S = 0.2
"""Time between the due times of two tokens unless somebody says otherwise: about reading speed."""
LONGEST_TOKEN_INTERVAL_S = 60.0
"""The longest that may be asked for, seconds."""


class SloKind(enum.Enum):
    """What a deadline is measured against.

    Per token: the deadline is that of the first token, and each further one is due a token interval
    after the one before. An answer is as late as its latest token.
    """

    COMPLETE_ANSWER = "complete_answer"
    FIRST_TOKEN = "first_token"  # noqa: S105 - no password
    PER_TOKEN = "per_token"  # noqa: S105 - no password


class RewardKind(enum.Enum):
    """How lateness counts: hard zeroes a late answer, soft lets its quality decay."""

    HARD = "hard"
    SOFT = "soft"


class Priority(enum.IntEnum):
    """How a request stands beside others; the value is its place (`router.priority`)."""

    HIGH = -1
    NORMAL = 0
    LOW = 1

    @property
    def label(self) -> str:
        """Its name as people write it."""
        return self.name.lower()


def is_finite_number(value: object) -> TypeGuard[float]:
    """Returns whether a value read from a file is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


_MOST_PROBLEMS = 100


class InvalidFileError(ValueError):
    """A profile, quality or snapshot file is wrong; `problems` lists every mistake found."""

    def __init__(self, origin: str, problems: list[str]) -> None:
        """Keeps the origin (file name) and one short line per mistake."""
        problems = [one_line(problem) for problem in problems[:_MOST_PROBLEMS]]
        super().__init__("\n".join(f"{origin}: {problem}" for problem in problems))
        self.origin = origin
        self.problems = problems


class UnknownPolicyError(LookupError):
    """A policy name is not known; the message lists the known ones."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        """Keeps the name asked for and the known names."""
        super().__init__(f"unknown policy {name!r}; known: {', '.join(known)}")
        self.name = name
        self.known = known


@dataclass(frozen=True, slots=True)
class Task:
    """Class of request with its own quality per tier and default deadline.

    Attributes:
        name: unique name.
        default_deadline_s: deadline if neither the request nor its call carries one, seconds, > 0.
        slo_kind: what the deadline is measured against.
        reward_kind: hard or soft deadline.
        soft_decay_s: e-folding time of a soft reward's decay with lateness, seconds, > 0.
        default_max_output_tokens: limit of output tokens if the request has none, >= 1.
        expected_output_tokens: prior of the output-length predictor, tokens, >= 1.
        target: share of hard deadlines that is to be met, 0 (no target) to below 1.
        token_interval_s: time between the due times of two tokens where the deadline is per token
            and the request brings none, seconds, > 0.
    """

    name: str
    default_deadline_s: float
    slo_kind: SloKind = SloKind.COMPLETE_ANSWER
    reward_kind: RewardKind = RewardKind.HARD
    soft_decay_s: float = 0.2
    default_max_output_tokens: int = 16
    expected_output_tokens: float = 8.0
    target: float = 0.99
    token_interval_s: float = TOKEN_INTERVAL_S


class Request(NamedTuple):
    """What a policy may know of a request; the true output length is not among it.

    Attributes:
        task: index of the task in the catalog.
        slack_s: time left until the deadline, seconds; may be negative.
        prompt_tokens: estimated number of prompt tokens, >= 1.
        output_tokens: *predicted* number of output tokens, >= 1.
        quality_floor: lowest quality accepted, 0 to 1.
        tier_pin: index of the only tier allowed, or NO_TIER_PIN.
        slo_kind: what the deadline is measured against.
        reward_kind: hard or soft deadline.
        soft_decay_s: e-folding time of a soft reward, seconds.
        priority: how it stands beside others.
        token_interval_s: time between the due times of two tokens, seconds; 0 unless the deadline
            is per token.
    """

    task: int
    slack_s: float
    prompt_tokens: float
    output_tokens: float
    quality_floor: float = 0.0
    tier_pin: int = NO_TIER_PIN
    slo_kind: SloKind = SloKind.COMPLETE_ANSWER
    reward_kind: RewardKind = RewardKind.HARD
    soft_decay_s: float = 0.2
    priority: Priority = Priority.NORMAL
    token_interval_s: float = 0.0

    @property
    def event_tokens(self) -> float:
        """Predicted number of tokens until the deadline's event."""
        return 1.0 if self.slo_kind is SloKind.FIRST_TOKEN else self.output_tokens

    @property
    def reward_decay_s(self) -> float:
        """E-folding time of the reward with lateness, seconds; 0 = hard, as kernels take it."""
        return self.soft_decay_s if self.reward_kind is RewardKind.SOFT else 0.0
