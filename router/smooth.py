"""Smooth goodput: answers count, late ones less; after arXiv 2410.14257.

Goodput counts a late answer as none, so whoever drops what is late looks no worse. Here each answer
counts by what its lateness leaves, and one that never came counts nothing.
"""

from __future__ import annotations

import math

DECAY_S = 0.2
"""An answer late by this much counts 1/e."""


def share(lateness_s: float) -> float:
    """Returns what an answer counts that came so late, 0 to 1; 1 if it came in time.

    Args:
        lateness_s: time of the deadline's event minus the deadline, seconds.
    """
    return math.exp(-max(0.0, lateness_s) / DECAY_S)
