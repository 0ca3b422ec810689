"""What a trace is resampled from: rate and burstiness per window, and its lengths' distribution.

Arrivals follow AlpaServe (Li et al., OSDI 2023, arXiv 2302.11665): the trace is cut into windows
and each is taken for a gamma renewal process of its own rate and coefficient of variation (CV).

Shape letters: N requests, W windows.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from trainer.simulation.workload import Times, WorkloadError
from trainer.traces.trace import Trace

WINDOW_S = 60.0
"""Default window: the resolution of Azure Functions 2019. docs/workloads.md compares others."""
_FEWEST_GAPS = 3
_LOWEST_CV = 0.05
_MOST_WINDOWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Lognormal:
    """A lognormal distribution of token counts, clipped.

    Attributes:
        median: median, tokens.
        sigma: standard deviation of the logarithm.
        lowest: fewest tokens, >= 1.
        highest: most tokens.
    """

    median: float
    sigma: float
    lowest: int
    highest: int

    @classmethod
    def fit(cls, tokens_N: NDArray[np.int64]) -> Self:
        """Returns the maximum-likelihood fit of positive counts, clipped to their range."""
        log_N = np.log(tokens_N)
        median = math.exp(float(log_N.mean()))
        return cls(median, float(log_N.std()), int(tokens_N.min()), int(tokens_N.max()))

    def at(self, normal_N: NDArray[np.float64]) -> NDArray[np.int64]:
        """Returns the token counts at standard normal deviates."""
        tokens_N = np.rint(self.median * np.exp(self.sigma * normal_N))
        return np.clip(tokens_N, self.lowest, self.highest).astype(np.int64)


@dataclass(frozen=True, slots=True)
class LengthModel:
    """Prompt and output lengths: two lognormals whose logarithms are correlated.

    Attributes:
        prompt: prompt tokens.
        output: output tokens.
        correlation: of their logarithms, -1 to 1.
    """

    prompt: Lognormal
    output: Lognormal
    correlation: float = 0.0

    def sample(
        self, count: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns prompt and output tokens of `count` requests."""
        first_N, second_N = rng.standard_normal((2, count))
        rest = math.sqrt(max(0.0, 1.0 - self.correlation**2))
        return self.prompt.at(first_N), self.output.at(self.correlation * first_N + rest * second_N)


@dataclass(frozen=True, slots=True, eq=False)
class TraceModel:
    """A trace as windows and distributions: small, whatever the size of the file.

    Attributes:
        name: for tables.
        span_W: length of each window, seconds; all alike but the last.
        rate_W: arrival rate in each window, requests per second; may be 0.
        cv_W: coefficient of variation of the gaps in each window, > 0.
        lengths: distribution of lengths; None if the trace has none.
    """

    name: str
    span_W: NDArray[np.float64]
    rate_W: NDArray[np.float64]
    cv_W: NDArray[np.float64]
    lengths: LengthModel | None = None

    @property
    def duration_s(self) -> float:
        """Length of the trace, seconds."""
        return float(self.span_W.sum())

    @property
    def rate_rps(self) -> float:
        """Mean rate, requests per second."""
        return float((self.rate_W * self.span_W).sum()) / self.duration_s


def fit_trace(trace: Trace, window_s: float = WINDOW_S) -> TraceModel:
    """Fits windows and lengths.

    A window's rate is its number of requests over its length. Its CV is that of the gaps inside it,
    by moments: where time stamps are whole seconds (BurstGPT), many gaps are 0, and the maximum
    likelihood of a gamma distribution does not exist. In a window with fewer than four requests it
    is 1 (Poisson). The CV of n gaps cannot exceed sqrt(n), so short windows understate wild bursts.

    Args:
        trace: the trace.
        window_s: length of a window, seconds.

    Raises:
        WorkloadError: the window is not above 0, or makes more than a million windows, or the trace
            is too short for a rate.
    """
    if not window_s > 0 or not trace.duration_s / window_s <= _MOST_WINDOWS:
        raise WorkloadError(
            f"{trace.name}: window_s must be above 0 and make at most {_MOST_WINDOWS} windows"
            f" of {trace.duration_s:g} s (got {window_s})"
        )
    count = max(1, math.ceil(trace.duration_s / window_s - 1e-9))
    edge_W = np.append(np.arange(count) * window_s, trace.duration_s)
    cut_W = np.searchsorted(trace.arrival_N, edge_W[1:-1])
    parts = np.split(trace.arrival_N, cut_W)
    span_W = np.diff(edge_W)
    size_W = np.array([len(part) for part in parts])
    cv_W = np.array([gap_cv(part) for part in parts])
    if not len(trace) / sys.float_info.max <= span_W.min():
        raise WorkloadError(f"{trace.name}: a window of {span_W.min():g} s is too short for a rate")
    return TraceModel(trace.name, span_W, size_W / span_W, cv_W, fit_lengths(trace))


def gap_cv(arrival_N: Times) -> float:
    """Returns the coefficient of variation of the gaps between arrivals; 1 for very few."""
    gap_N = np.diff(arrival_N)
    if len(gap_N) < _FEWEST_GAPS:
        return 1.0
    if gap_N.mean() <= 0:  # all at one instant: as bursty as that many gaps can be
        return math.sqrt(len(gap_N))
    return max(_LOWEST_CV, float(gap_N.std() / gap_N.mean()))


def fit_lengths(trace: Trace) -> LengthModel | None:
    """Returns the fit of the requests that have both lengths; None if fewer than two have."""
    if trace.prompt_tokens_N is None or trace.output_tokens_N is None:
        return None
    known_N = (trace.prompt_tokens_N > 0) & (trace.output_tokens_N > 0)
    if known_N.sum() < 2:
        return None
    prompt_N, output_N = trace.prompt_tokens_N[known_N], trace.output_tokens_N[known_N]
    prompt, output = Lognormal.fit(prompt_N), Lognormal.fit(output_N)
    correlation = 0.0
    if prompt.sigma > 0 and output.sigma > 0:
        correlation = float(np.corrcoef(np.log(prompt_N), np.log(output_N))[0, 1])
    return LengthModel(prompt, output, correlation)
