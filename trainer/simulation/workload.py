"""Workloads: when requests arrive, and what they ask for.

Arrival processes return times in seconds; `make_workload` adds tasks, lengths and deadlines. All
randomness comes from the generator given, so a workload is a function of (config, seed).

Shape letters: N requests, K tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]


class WorkloadError(ValueError):
    """A workload's parameter is out of range; the message names it."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Distribution of prompt and output lengths.

    Attributes:
        prompt_median: median prompt tokens.
        prompt_sigma: standard deviation of their logarithm (lognormal); 0 = constant.
        prompt_max: longest prompt, tokens.
        output_mean: mean output tokens.
        output_spread: output lengths are uniform over mean x (1 +- spread); 0 = constant.
        output_max: longest output, tokens.
    """

    prompt_median: float = 110.0
    prompt_sigma: float = 0.5
    prompt_max: int = 2000
    output_mean: float = 8.0
    output_spread: float = 0.5
    output_max: int = 64

    @property
    def prompt_mean(self) -> float:
        """Mean prompt tokens, the cut at `prompt_max` left out."""
        return self.prompt_median * math.exp(0.5 * self.prompt_sigma**2)

    @property
    def output_variation(self) -> float:
        """Coefficient of variation of the output tokens, taken as continuous."""
        return self.output_spread / math.sqrt(3.0)

    def sample(
        self, count: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Returns whole prompt and output lengths of `count` requests."""
        prompt = self.prompt_median * np.exp(self.prompt_sigma * rng.standard_normal(count))
        prompt_N = np.clip(np.rint(prompt), 1, self.prompt_max)
        low = max(1, round(self.output_mean * (1.0 - self.output_spread)))
        high = max(low, round(self.output_mean * (1.0 + self.output_spread)))
        output_N = rng.integers(low, high + 1, count)
        return prompt_N, np.clip(output_N, 1, self.output_max).astype(np.int64)


OPT_LENGTHS = Lengths()
"""The evaluation setting: about 124 prompt and 8 output tokens."""

REFERENCE_LENGTHS = Lengths(
    prompt_median=14.0, prompt_sigma=0.3, prompt_max=64, output_mean=8.0, output_max=16
)
"""Short text of the reference tiers, bytes as tokens."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests by arrival.

    Attributes:
        arrival_N: times, seconds, never falling.
        task_N: task indices, int64.
        prompt_N: prompt tokens.
        output_N: true output tokens, which no policy sees.
        slack_N: deadline after arrival, seconds.
        duration_s: length of the observed period, seconds.
        name: for tables.
        conversation_N: index of each request's conversation, int64, -1 = none; None = all have
            none.
        place_N: places of the requests' priority classes: -1 high, 0 normal, 1 low; None: all are
            normal.
        router_N: router that each request comes through, int64; None: any, drawn for each.
    """

    arrival_N: Times
    task_N: NDArray[np.int64]
    prompt_N: NDArray[np.float64]
    output_N: NDArray[np.int64]
    slack_N: NDArray[np.float64]
    duration_s: float
    name: str = ""
    conversation_N: NDArray[np.int64] | None = None
    place_N: NDArray[np.int8] | None = None
    router_N: NDArray[np.int64] | None = None

    @property
    def conversation_count(self) -> int:
        """Number of conversations."""
        if self.conversation_N is None:
            return 0
        return 1 + int(self.conversation_N.max(initial=-1))

    def __len__(self) -> int:
        """Returns the number of requests."""
        return len(self.arrival_N)

    def with_classes(self, share: Sequence[float], rng: np.random.Generator) -> Workload:
        """Returns it with priority classes drawn for its requests.

        Args:
            share: of high, normal and low; scaled to sum to 1.
            rng: source of randomness.
        """
        share_P = np.asarray(share, dtype=np.float64)
        place_N = rng.choice((-1, 0, 1), size=len(self), p=share_P / share_P.sum())
        return replace(self, place_N=place_N.astype(np.int8))

    def scaled(self, factor: float) -> Workload:
        """Returns it with arrivals and deadlines stretched by `factor` (> 0)."""
        return replace(
            self,
            arrival_N=self.arrival_N * factor,
            slack_N=self.slack_N * factor,
            duration_s=self.duration_s * factor,
        )


def make_workload(
    arrival_N: Times,
    duration_s: float,
    *,
    rng: np.random.Generator,
    deadline_s: float | Sequence[float] = 0.4,
    task_share: Sequence[float] = (0.25, 0.25, 0.25, 0.25),
    lengths: Lengths = OPT_LENGTHS,
    name: str = "",
) -> Workload:
    """Adds tasks, lengths and deadlines to arrivals.

    Args:
        arrival_N: times, seconds.
        duration_s: length of the period, seconds.
        rng: source of randomness.
        deadline_s: one deadline for all, or one per task.
        task_share: share of each task; scaled to sum to 1.
        lengths: distribution of lengths.
        name: for tables.

    Raises:
        WorkloadError: shares are negative or all zero, or deadlines do not fit the tasks.
    """
    share_K = np.asarray(task_share, dtype=np.float64)
    if (share_K < 0).any() or share_K.sum() <= 0:
        raise WorkloadError(f"task_share must be non-negative and not all zero (got {task_share})")
    deadlines_K = np.broadcast_to(np.asarray(deadline_s, dtype=np.float64), share_K.shape)
    if not (deadlines_K > 0).all():
        raise WorkloadError(f"deadline_s must be above 0 (got {deadline_s})")
    task_N = rng.choice(len(share_K), size=len(arrival_N), p=share_K / share_K.sum())
    prompt_N, output_N = lengths.sample(len(arrival_N), rng)
    return Workload(
        np.sort(np.asarray(arrival_N, dtype=np.float64)),
        task_N.astype(np.int64),
        prompt_N,
        output_N,
        deadlines_K[task_N],
        duration_s,
        name,
    )


def _check_rate(rate_rps: float, duration_s: float) -> None:
    if not rate_rps > 0 or not math.isfinite(rate_rps):
        raise WorkloadError(f"rate_rps must be above 0 (got {rate_rps})")
    if not duration_s > 0 or not math.isfinite(duration_s):
        raise WorkloadError(f"duration_s must be above 0 (got {duration_s})")


def poisson(rate_rps: float, duration_s: float, rng: np.random.Generator) -> Times:
    """Returns arrivals of a Poisson process."""
    _check_rate(rate_rps, duration_s)
    count = rng.poisson(rate_rps * duration_s)
    return np.sort(rng.random(count)) * duration_s


def gamma_renewal(rate_rps: float, cv: float, duration_s: float, rng: np.random.Generator) -> Times:
    """Returns arrivals whose gaps are gamma distributed with coefficient of variation `cv` (> 0).

    cv 1 is Poisson, above 1 bursty: shape 1/cv^2, scale cv^2/rate.
    """
    _check_rate(rate_rps, duration_s)
    if not cv > 0:
        raise WorkloadError(f"cv must be above 0 (got {cv})")
    shape, scale = 1.0 / cv**2, cv**2 / rate_rps
    parts: list[Times] = []
    # The process starts one long gap before zero, so that it is close to stationary there.
    end_s = -20.0 * cv**2 / rate_rps
    while end_s < duration_s:
        count = int(rate_rps * (duration_s - min(end_s, 0.0)) * 1.1) + 64
        part = end_s + np.cumsum(rng.gamma(shape, scale, count))
        parts.append(part)
        end_s = float(part[-1])
    arrival_N = np.concatenate(parts)
    return arrival_N[(arrival_N >= 0.0) & (arrival_N < duration_s)]


def piecewise(pieces: Sequence[tuple[float, float]], rng: np.random.Generator) -> Times:
    """Returns Poisson arrivals over (duration_s, rate_rps) pieces in turn; a rate may be 0."""
    start_s, parts = 0.0, [np.zeros(0)]
    for duration_s, rate_rps in pieces:
        if rate_rps > 0:
            parts.append(start_s + poisson(rate_rps, duration_s, rng))
        start_s += duration_s
    return np.concatenate(parts)


def square_wave(
    low_rps: float,
    high_rps: float,
    period_s: float,
    duration_s: float,
    rng: np.random.Generator,
    high_share: float = 0.5,
) -> Times:
    """Returns Poisson arrivals that switch between two rates every period, low first."""
    if not period_s > 0 or not 0 < high_share < 1:
        raise WorkloadError("period_s must be above 0 and high_share between 0 and 1")
    pieces: list[tuple[float, float]] = []
    left_s = duration_s
    while left_s > 0:
        for rate_rps, share in ((low_rps, 1.0 - high_share), (high_rps, high_share)):
            piece_s = min(period_s * share, left_s)
            if piece_s > 0:
                pieces.append((piece_s, rate_rps))
                left_s -= piece_s
    return piecewise(pieces, rng)


def markov_modulated(
    rates_rps: Sequence[float], dwell_s: float, duration_s: float, rng: np.random.Generator
) -> Times:
    """Returns Poisson arrivals whose rate jumps to another state after exponential dwell times."""
    if len(rates_rps) < 2 or not dwell_s > 0:
        raise WorkloadError("markov_modulated needs two rates or more and dwell_s above 0")
    pieces: list[tuple[float, float]] = []
    state, left_s = int(rng.integers(len(rates_rps))), duration_s
    while left_s > 0:
        piece_s = min(float(rng.exponential(dwell_s)), left_s)
        pieces.append((piece_s, rates_rps[state]))
        left_s -= piece_s
        state = (state + 1 + int(rng.integers(len(rates_rps) - 1))) % len(rates_rps)
    return piecewise(pieces, rng)
