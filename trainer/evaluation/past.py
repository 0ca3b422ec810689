"""Past requests and what they could have earned; loads no simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from router.types import SloKind


class PastRequest(NamedTuple):
    """A request that has ended.

    Attributes:
        task: Name of its task.
        arrival_s: When it came, seconds since any moment.
        prompt_tokens: Prompt tokens.
        output_tokens: Output tokens.
        slack_s: Its deadline after its arrival.
        reward: What it earned.
        cached_tokens: Prompt tokens that need not have been computed, at best.
        slo_kind: What its deadline was measured against; None: its task's default.
        token_interval_s: Time between the due times of two tokens where each had its own; 0: its
            task's default.
    """

    task: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    slack_s: float
    reward: float
    cached_tokens: int = 0
    slo_kind: SloKind | None = None
    token_interval_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LookBack:
    """What requests could have earned.

    Attributes:
        parts: Each task's part of the bound on the sum of rewards.
        static_large: Mean reward of the largest tier alone by number of devices, ascending; what
            the last one earns, more do not exceed by much.
    """

    parts: Mapping[str, float]
    static_large: tuple[tuple[int, float], ...]
