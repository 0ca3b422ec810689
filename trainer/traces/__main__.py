"""Prints what a trace is like, and what its replay is like by length of window.

    python -m trainer.traces FILE [--kind KIND] [--windows 10,60,300]
        [--profile profiles/opt-a100.toml --limits 0.2,0.4]

With a profile: the share of the trace's requests whose answer takes at most so many seconds alone
on an idle device, by tier.

FILE may also be the name of a synthetic stand-in. Exit code 2: the file or an argument is wrong.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np

from router.profile import LatencyProfile, parse_profile
from router.types import InvalidFileError
from trainer.simulation.workload import Times, WorkloadError
from trainer.traces.fit import fit_trace, gap_cv
from trainer.traces.read import KINDS
from trainer.traces.resample import replay_arrivals, unloaded_s
from trainer.traces.synthetic import open_trace
from trainer.traces.trace import Trace

_COLUMNS = ("rate/s", "gap CV", "empty s", "p99/s", "max/s", "IDC 1 s", "IDC 10 s", "IDC 60 s")
_REPLAY_SEEDS = range(6)


def statistics(arrival_N: Times, duration_s: float) -> list[float]:
    """Returns the figures of _COLUMNS: rate, CV of the gaps, counts per second, dispersion.

    The index of dispersion for counts (IDC) is the variance of the counts in windows of a length
    over their mean; 1 for a Poisson process.
    """
    seconds = _Counts(arrival_N, duration_s, 1.0)
    return [
        len(arrival_N) / duration_s,
        gap_cv(arrival_N),
        seconds.empty_count / seconds.total_count,
        seconds.percentile(99.0),
        float(seconds.busy_W.max(initial=0)),
        *(_Counts(arrival_N, duration_s, each_s).dispersion() for each_s in (1.0, 10.0, 60.0)),
    ]


class _Counts:
    """Arrivals per window; empty windows are only numbered, so that gaps of months cost nothing.

    Attributes:
        busy_W: arrivals of each window that has any, rising.
        total_count: whole windows.
        empty_count: windows without an arrival.
    """

    def __init__(self, arrival_N: Times, duration_s: float, window_s: float) -> None:
        """Counts; a last window that is not whole is left out."""
        self.total_count = max(1, int(duration_s // window_s))
        place_N = (arrival_N // window_s).astype(np.int64)
        _, count_W = np.unique(place_N[place_N < self.total_count], return_counts=True)
        self.busy_W = np.sort(count_W).astype(np.float64)
        self.empty_count = self.total_count - len(self.busy_W)

    def percentile(self, percent: float) -> float:
        """Returns a percentile of all counts, by linear interpolation."""
        place = percent / 100.0 * (self.total_count - 1)
        lower = math.floor(place)
        first, second = self._at(lower), self._at(min(lower + 1, self.total_count - 1))
        return first + (place - lower) * (second - first)

    def dispersion(self) -> float:
        """Returns the variance of the counts over their mean; 0 where there are none."""
        mean = float(self.busy_W.sum()) / self.total_count
        square = float((self.busy_W**2).sum()) / self.total_count
        return (square - mean**2) / mean if mean > 0 else 0.0

    def _at(self, place: int) -> float:
        return 0.0 if place < self.empty_count else float(self.busy_W[place - self.empty_count])


def report(trace: Trace, windows_s: list[float]) -> str:
    """Returns the table, one row for the trace and one per length of window."""
    head = f"{trace.name}: {len(trace)} requests in {trace.duration_s:.0f} s, kind {trace.kind}"
    if trace.share < 1.0:
        head += f", thinned to {trace.share:.3g} of its requests"
    rows = [("", *_COLUMNS), _row("trace", statistics(trace.arrival_N, trace.duration_s))]
    for window_s in windows_s:
        model = fit_trace(trace, window_s)
        runs = []
        for seed in _REPLAY_SEEDS:
            rng = np.random.default_rng(seed)
            arrival_N = replay_arrivals(model, trace.rate_rps, trace.duration_s, rng)
            runs.append(statistics(arrival_N, trace.duration_s))
        rows.append(_row(f"replay, {window_s:g} s windows", np.mean(runs, axis=0).tolist()))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    lengths = fit_trace(trace).lengths
    if lengths is not None:
        lines += ["", f"prompt {lengths.prompt}", f"output {lengths.output}"]
        lines.append(f"correlation of logarithms {lengths.correlation:.2f}")
    return "\n".join([head, *lines])


def fit_report(trace: Trace, profile: LatencyProfile, limits_s: list[float]) -> str:
    """Returns the share of requests with known lengths within each limit, one row per tier."""
    if trace.prompt_tokens_N is None or trace.output_tokens_N is None:
        return "no lengths"
    known_N = (trace.prompt_tokens_N > 0) & (trace.output_tokens_N > 0)
    lines = []
    for name, tier in profile.tiers.items():
        time_N = unloaded_s(tier, trace.prompt_tokens_N[known_N], trace.output_tokens_N[known_N])
        shares = [f"{(time_N <= limit).mean():.3f} in {limit:g} s" for limit in limits_s]
        lines.append(f"alone on {profile.name} {name}: {', '.join(shares)}")
    return "\n".join(lines)


def _numbers(text: str) -> list[float]:
    """Returns numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers by commas (got {text!r})") from None


def _row(name: str, values: list[float]) -> tuple[str, ...]:
    return (name, *(f"{value:.2f}" for value in values))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.traces", description="Statistics of a trace."
    )
    parser.add_argument("file")
    parser.add_argument("--kind", choices=sorted(KINDS))
    parser.add_argument("--windows", type=_numbers, default="10,60,300", help="seconds, by commas")
    parser.add_argument("--profile", type=Path, help="latency profile")
    parser.add_argument("--limits", type=_numbers, default="0.2,0.4", help="seconds, by commas")
    options = parser.parse_args(arguments)
    try:
        trace = open_trace(options.file, options.kind)
        print(report(trace, options.windows))
        if options.profile is not None:
            profile = parse_profile(options.profile.read_text("utf-8"), options.profile.name)
            print(fit_report(trace, profile, options.limits))
    except (InvalidFileError, WorkloadError, OSError, UnicodeDecodeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
