"""A synthetic stand-in for a trace that cannot be had: published statistics, no real requests.

Shape letter: N requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm
from scipy.optimize import brentq

from trainer.simulation.workload import Times, WorkloadError, piecewise
from trainer.traces.fit import LengthModel, Lognormal
from trainer.traces.read import read_trace
from trainer.traces.trace import Trace

_P90 = 1.2815515655446004
"""The standard normal distribution's 90th percentile."""


def interrupted_poisson(
    rate_rps: float, cv: float, empty_share: float
) -> tuple[float, float, float]:
    """Returns (rate while on, mean time on, mean time off) of an interrupted Poisson process.

    Poisson arrivals that an exponential on-off switch lets through (Kuczura, Bell System Technical
    Journal 52(3), 1973). With p the share of time on and s the sum of both switching rates

        rate on = rate / p
        CV^2 = 1 + 2 rate (1 - p) / (p s)
        share of seconds without arrivals = (1 - p, p) exp(Q - diag(0, rate on)) 1

    where Q switches; p is found from the last line.

    Args:
        rate_rps: mean rate.
        cv: coefficient of variation of the gaps, above 1.
        empty_share: share of seconds without arrivals, above that of a Poisson process.

    Raises:
        WorkloadError: no such process exists.
    """

    def process(on_share: float) -> tuple[float, float, float]:
        """Returns (rate while on, rate of switching off, rate of switching on)."""
        switching = 2.0 * rate_rps * (1.0 - on_share) / (on_share * (cv**2 - 1.0))
        return rate_rps / on_share, switching * (1.0 - on_share), switching * on_share

    def excess(on_share: float) -> float:
        on_rps, off_rate, on_rate = process(on_share)
        generator = np.array([[-on_rate, on_rate], [off_rate, -off_rate - on_rps]])
        stationary = np.array([1.0 - on_share, on_share])
        return float(stationary @ expm(generator) @ np.ones(2)) - empty_share

    if not cv > 1 or not math.exp(-rate_rps) < empty_share < 1:
        raise WorkloadError("an interrupted Poisson process is burstier than a Poisson process")
    try:
        on_share = float(brentq(excess, 1e-3, 1.0 - 1e-6))
    except ValueError:
        raise WorkloadError("no interrupted Poisson process has these statistics") from None
    on_rps, off_rate, on_rate = process(on_share)
    return on_rps, 1.0 / off_rate, 1.0 / on_rate


def on_off_arrivals(
    on_rps: float, on_s: float, off_s: float, duration_s: float, rng: np.random.Generator
) -> Times:
    """Returns arrivals of an interrupted Poisson process that starts in its steady state."""
    pieces: list[tuple[float, float]] = []
    left_s, is_on = duration_s, bool(rng.random() < on_s / (on_s + off_s))
    while left_s > 0:
        piece_s = min(float(rng.exponential(on_s if is_on else off_s)), left_s)
        pieces.append((piece_s, on_rps if is_on else 0.0))
        left_s, is_on = left_s - piece_s, not is_on
    return piecewise(pieces, rng)


def azure_llm_code_like(rng: np.random.Generator) -> Trace:
    """Returns a made-up trace with published statistics of the Azure LLM 2023 code trace.

    Matched in the mean: 2.57 requests/s over 3436 s, CV of the gaps 13.15, 73 % of seconds without
    arrivals; prompt tokens p50 1469, p90 5188, at most 7437; output tokens p50 13, p90 55, at most
    1899 (lognormal through median and 90th percentile). Not matched: anything else, for instance
    the height of the peaks within a second. Source of the statistics: Azure Public Dataset;
    Patel et al., "Splitwise", ISCA 2024.
    """
    duration_s = 3436.0
    on_rps, on_s, off_s = interrupted_poisson(2.57, 13.15, 0.73)
    arrival_N = on_off_arrivals(on_rps, on_s, off_s, duration_s, rng)
    lengths = LengthModel(
        Lognormal(1469.0, math.log(5188.0 / 1469.0) / _P90, 1, 7437),
        Lognormal(13.0, math.log(55.0 / 13.0) / _P90, 1, 1899),
    )
    prompt_N, output_N = lengths.sample(len(arrival_N), rng)
    return _trace("azure-llm-code-like (synthetic)", arrival_N, duration_s, prompt_N, output_N)


def _trace(
    name: str,
    arrival_N: Times,
    duration_s: float,
    prompt_N: NDArray[np.int64],
    output_N: NDArray[np.int64],
) -> Trace:
    return Trace(arrival_N, duration_s, prompt_N, output_N, name, "synthetic")


STAND_INS: Mapping[str, Callable[[np.random.Generator], Trace]] = {
    "azure-llm-code-like": azure_llm_code_like
}
"""Stand-ins by name."""


def open_trace(source: str | Path, kind: str | None = None) -> Trace:
    """Returns the trace of a file, or a stand-in by its name (always the same one).

    Raises:
        TraceFileError: the file is wrong; see `read_trace`.
    """
    if str(source) in STAND_INS:
        return STAND_INS[str(source)](np.random.default_rng(0))
    return read_trace(source, kind)
