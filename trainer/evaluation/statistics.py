"""Means and 95 % intervals over seeds.

Shape letters: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over seeds and half the width of its 95 % interval (Student's t; 0 for one seed)."""

    mean: float
    half: float

    def __str__(self) -> str:
        """Returns e.g. "0.972 ± 0.003"."""
        return f"{self.mean:.3f} ± {self.half:.3f}"


def interval(values: Iterable[float]) -> Interval:
    """Returns mean and 95 % interval of independent values, at least one."""
    value_S = np.asarray(list(values), dtype=np.float64)
    if len(value_S) < 2:
        return Interval(float(value_S.mean()), 0.0)
    error = value_S.std(ddof=1) / math.sqrt(len(value_S))
    return Interval(float(value_S.mean()), float(student_t.ppf(0.975, len(value_S) - 1) * error))
