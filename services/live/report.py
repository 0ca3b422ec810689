"""What a live evaluation says: a table for the terminal, a verdict, a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from router.policies.table import DQN, STATIC_PREFIX
from services.live.compare import MOST_LATENCY_ERROR, MOST_SCORE_ERROR
from trainer.evaluation.report.policy_lines import Palette
from trainer.evaluation.report.style import INK, STYLE
from trainer.evaluation.report.tables import Table, number

Point = Mapping[str, Any]
WIDTH_IN = 9.0
PANELS = (
    ("mean_s", "mean latency, s"),
    ("p99_s", "99th percentile of latency, s"),
    ("availability", "availability"),
    ("performance", "performance"),
)
COLUMNS = (
    "load", "policy", "mean ms", "error", "p99 ms", "in time", "error", "performance",
    "error", "mix", "machine", "lag ms", "counts",
)  # fmt: skip


def live_table(points: Sequence[Point]) -> Table:
    """Returns both sides of every point, the live one above the simulated one."""
    return Table("Live, and simulated below", COLUMNS, tuple(map(_row, points)), 2)


def _row(point: Point) -> tuple[str, ...]:
    here, there, error = point["live"], point["simulated"], point["error"]

    def both(name: str, factor: float = 1.0, digits: int = 3) -> str:
        found = (side[name] for side in (here, there))
        return "\n".join(number(each and factor * each, digits) for each in found)

    mean = "-" if error["mean"] is None else f"{error['mean']:+.1%}"
    mixes = [
        " ".join(f"{100.0 * side['mix'].get(tier, 0.0):.0f}" for tier in there["mix"])
        for side in (here, there)
    ]
    return (
        f"{point['load']:g}x\nx{point['time_scale']:g}",
        point["policy"],
        both("mean_s", 1e3, 0),
        mean,
        both("p99_s", 1e3, 0),
        both("availability"),
        f"{error['availability']:+.3f}",
        both("performance"),
        f"{error['performance']:+.3f}",
        "\n".join(mixes),
        f"{point['machine_busy']:.0%}",
        number(point["loop_lag_ms"], 1),
        _counts(point),
    )


def _counts(point: Point) -> str:
    if not point["counts"]:
        return f"no: {point['why_not']}"
    return "yes" if point["within"] else "yes, off"


def _mean(values: Iterable[float | None]) -> float:
    """Returns the mean of those that are known; NaN if none is."""
    known = [each for each in values if each is not None]
    return statistics.fmean(known) if known else math.nan


def verdict(points: Sequence[Point]) -> str:
    """Returns in a few sentences how near the simulator is."""
    counted = [each for each in points if each["counts"]]
    if not counted:
        return f"None of {len(points)} runs counts: the machine was too busy to say anything."
    within = sum(each["within"] for each in counted)
    errors = [each["error"] for each in counted]
    means = [abs(each["mean"]) for each in errors if each["mean"] is not None]
    scores = [abs(each[name]) for each in errors for name in ("availability", "performance")]
    limits = f"{MOST_LATENCY_ERROR:.0%} in mean latency and {MOST_SCORE_ERROR:g} in the scores"
    said = [
        f"{within} of {len(counted)} runs that count are within {limits} of the simulator.",
        f"Mean error of availability and performance: {statistics.fmean(scores):.3f}.",
    ]
    if means:
        said.append(f"Mean error of the mean latency: {statistics.fmean(means):.1%}.")
    if len(counted) < len(points):
        said.append(f"{len(points) - len(counted)} runs do not count.")
    return " ".join(said)


def live_figure(points: Sequence[Point], small: str, large: str) -> Figure:
    """Latency and scores over load: a line as simulated, a mark as live, hollow if not counted.

    Args:
        points: Rows of the report.
        small: Name of the smallest tier.
        large: Name of the largest.
    """
    policies = list(dict.fromkeys(each["policy"] for each in points))
    loads = sorted({each["load"] for each in points})
    palette = Palette(policies, DQN, STATIC_PREFIX + small, STATIC_PREFIX + large)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 6.0), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True)
        for axes, (name, title) in zip(panels.flat, PANELS, strict=True):
            for policy in policies:
                line = palette.line(policy)
                own = [each for each in points if each["policy"] == policy]
                curve = [
                    _mean(e["simulated"][name] for e in own if e["load"] == load) for load in loads
                ]
                axes.plot(loads, curve, marker=".", **line)
                for each in own:
                    face = line["color"] if each["counts"] else "none"
                    axes.plot(
                        [each["load"]], [_mean([each["live"][name]])], "o", ms=6, mec=line["color"],
                        mfc=face, zorder=6,
                    )  # fmt: skip
            axes.set_xscale("log")
            axes.set_xticks(loads, [f"{load:g}x" for load in loads])
            axes.minorticks_off()
            axes.set_ylim(0.0, max(1.05 * axes.dataLim.ymax, 1e-3))
            axes.set_title(title)
        for axes in panels[1]:
            axes.set_xlabel("load, multiples of about what the largest tier holds")
        handles, _ = panels[0, 0].get_legend_handles_labels()
        marks = [
            Line2D([], [], color=INK, marker=".", label="simulated"),
            Line2D([], [], color=INK, marker="o", ls="", label="live"),
            Line2D([], [], color=INK, marker="o", mfc="none", ls="", label="live, does not count"),
        ]
        handles = [*handles, *marks]
        figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=len(handles))
    return figure
