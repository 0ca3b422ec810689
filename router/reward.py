"""The reward of an answer: one function for live services, simulator and training."""

from __future__ import annotations

import math


def answer_reward(quality: float, lateness_s: float, soft_decay_s: float) -> float:
    """Returns what an answer earns.

    Args:
        quality: quality of the tier that answered, 0 to 1.
        lateness_s: time of the deadline's event minus the deadline, seconds; 0 or less = on time.
        soft_decay_s: e-folding time of a soft deadline's decay, seconds; 0 or less = hard: a late
            answer earns nothing.
    """
    if lateness_s <= 0.0:
        return quality
    if soft_decay_s <= 0.0:
        return 0.0
    return quality * math.exp(-min(lateness_s / soft_decay_s, 700.0))
