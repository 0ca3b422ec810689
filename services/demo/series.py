"""Time series of a replay: what the plots show, in equal bins of intended send time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.loadgen.records import LATE, ON_TIME, RunRecords

BIN_S = 0.5


@dataclasses.dataclass(frozen=True)
class Series:
    """One replay over time; every array has shape [n bins].

    Attributes:
        time_s: Middle of each bin, from the start of the run.
        offered_rps: Offered requests per second.
        on_time_rps: Those of them answered on time.
        mix: Per tier the requests per second it answered, on time or late.
        p50_ms: Median latency of requests answered or cut off; NaN without any.
        p99_ms: 99th percentile of the same.
        performance: Mean over offered of quality x on-time; NaN without any.
        quality: Mean table quality of the answers on time; NaN without any.
        exact: Mean exact match of the answers on time that can be scored; NaN without any.
    """

    time_s: NDArray[np.float64]
    offered_rps: NDArray[np.float64]
    on_time_rps: NDArray[np.float64]
    mix: dict[str, NDArray[np.float64]]
    p50_ms: NDArray[np.float64]
    p99_ms: NDArray[np.float64]
    performance: NDArray[np.float64]
    quality: NDArray[np.float64]
    exact: NDArray[np.float64]


def make_series(records: RunRecords, tiers: Sequence[str], bin_s: float = BIN_S) -> Series:
    """Bins a run by the time its requests were meant to be sent."""
    columns = records.columns
    count = max(1, int(np.ceil(float(records.meta["duration_s"]) / bin_s)))
    bins = np.minimum((columns["intended_s"] / bin_s).astype(int), count - 1)
    on_time = columns["status"] == ON_TIME
    timed = on_time | (columns["status"] == LATE)
    quality = np.nan_to_num(columns["quality"].astype(np.float64))
    offered = np.bincount(bins, minlength=count)
    on_time_count = np.bincount(bins[on_time], minlength=count)

    def mean(weights: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
        sums = np.bincount(bins, weights=weights * on_time, minlength=count)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    tier_index = {name: i for i, name in enumerate(records.names["tier"])}
    exact = columns["exact"].astype(np.float64)
    scored = np.bincount(bins[on_time & ~np.isnan(exact)], minlength=count)
    return Series(
        time_s=(np.arange(count, dtype=np.float64) + 0.5) * bin_s,
        offered_rps=offered / bin_s,
        on_time_rps=on_time_count / bin_s,
        mix={
            tier: np.bincount(
                bins[columns["answered"] & (columns["tier"] == tier_index.get(tier, -2))],
                minlength=count,
            )
            / bin_s
            for tier in tiers
        },
        p50_ms=_quantiles(bins[timed], columns["latency_s"][timed], count, 0.5),
        p99_ms=_quantiles(bins[timed], columns["latency_s"][timed], count, 0.99),
        performance=mean(quality, offered),
        quality=mean(quality, on_time_count),
        exact=mean(np.nan_to_num(exact), scored),
    )


def _quantiles(
    bins: NDArray[np.int64], latency_s: NDArray[np.float32], count: int, quantile: float
) -> NDArray[np.float64]:
    values = np.full(count, np.nan)
    for index in range(count):
        own = latency_s[bins == index]
        if len(own):
            values[index] = np.quantile(own, quantile) * 1e3
    return values
