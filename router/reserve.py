"""Room for bursts that return: the mesh plans for a share of the last minute's highest rate.

A burst finds the devices busy with what the calm before it was given: large tiers. Where an
operator wants room kept, policies are told a rate that does not fall below a share of the highest
one of the last minute. They read rates as always, so tiers become smaller in calm, and where the
learned policy keeps tiers to some devices, the others stay free. What that costs in quality and
what it brings is in docs/results/reserve.md.

A rate over 0.2 s is noisy, and the highest of many noisy ones is high. So a rate counts less what
its own noise may be: steady traffic keeps no room and pays nothing.

Kernels in the manner of `router.kernels`, used by the live services and compiled by the simulator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from router.traffic import SHORT_TAU_S

SHARES: Final = {"none": 0.0, "half": 0.5, "peak": 1.0}
"""Share of the highest rate that room is kept for, by what operators call it."""
BLOCK_S = 30.0
"""Peaks are remembered for one to two blocks."""
SIGMAS = 3.0
"""Standard deviations of a rate's own noise that are no peak."""


@dataclass(slots=True)
class Peaks:
    """The highest rates that one router has seen lately.

    Kernels change it in place. The simulator keeps the same fields in a record per router.

    Attributes:
        block_s: when the present block began, seconds.
        peak_rps: highest rate in it, requests per second.
        peak_before_rps: highest rate in the one before.
    """

    block_s: float = 0.0
    peak_rps: float = 0.0
    peak_before_rps: float = 0.0


def note(peaks: Peaks, rate_rps: float, age_s: float, now_s: float) -> None:
    """Remembers a rate, as far as it is told apart from noise.

    Args:
        peaks: of a router, changed in place.
        rate_rps: arrivals in the mesh per second, over about 0.2 s.
        age_s: for how long rates have been counted, seconds; at first they tell nothing.
        now_s: the present, seconds.
    """
    elapsed_s = now_s - peaks.block_s
    if elapsed_s >= BLOCK_S:
        peaks.peak_before_rps = peaks.peak_rps if elapsed_s < 2.0 * BLOCK_S else 0.0
        peaks.block_s = now_s
        peaks.peak_rps = 0.0
    if age_s >= SHORT_TAU_S:
        # Variance of a rate by arrivals that decay with a time constant.
        noise_rps = math.sqrt(max(rate_rps, 0.0) / (2.0 * SHORT_TAU_S))
        peaks.peak_rps = max(peaks.peak_rps, rate_rps - SIGMAS * noise_rps)


def least_rate_rps(peaks: Peaks, share: float) -> float:
    """Returns the rate below which a policy is told none, requests per second."""
    return share * max(peaks.peak_rps, peaks.peak_before_rps)
