"""How iteration times spread about their mean: one law, for simulated devices and paced tiers.

A profile's costs are means. Real iterations take a little more or less: kernels, clocks and hosts
vary. How much is the profile's `iteration_cv`, their coefficient of variation. The law is
log-normal: never below zero, the mean as the profile has it, the longer tail above.

Plain functions of numbers, so that the simulator compiles them. A copy of this file lies beside
every paced model, so: the standard library only.
"""

from __future__ import annotations

import math

MOST_CV = 3.0
"""Largest coefficient of variation a profile may have."""


def stretch(cv: float, first: float, second: float) -> float:
    """Returns the factor on one iteration's mean time; exactly 1 where there is no spread.

    Log-normal with mean 1: exp(s z - s^2 / 2) with s^2 = log(1 + cv^2), and z standard normal by
    the transform of Box and Muller (1958).

    Args:
        cv: coefficient of variation, 0 to MOST_CV.
        first: a uniform number in [0, 1).
        second: another one, independent of it.
    """
    if not cv > 0.0:
        return 1.0
    variance = math.log(1.0 + cv * cv)
    normal = math.sqrt(-2.0 * math.log(1.0 - first)) * math.cos(2.0 * math.pi * second)
    return math.exp(math.sqrt(variance) * normal - 0.5 * variance)
