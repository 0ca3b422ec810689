"""Plots of the demo: every policy in the burst, and rate, mix, latency and quality over time.

No colour says good or bad, and what must be told apart differs in line style or hatching as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from services.demo.series import Series
from trainer.evaluation.report.style import (
    BAND,
    BLUE,
    FAINT,
    INK,
    PALE,
    SOFT,
    STYLE,
    TIER_COLORS,
    TIER_HATCHES,
    VIOLET,
)

COLUMN_WIDTH_IN, HEIGHT_IN = 4.4, 8.2
BARS_WIDTH_IN, BAR_IN = 9.6, 0.3


def policy_bars(scores: Mapping[str, tuple[float, float]], *, about: str) -> Figure:
    """Draws a pair of bars for each policy: share in time, and performance.

    Args:
        scores: Both by the policy's title, the first at the top.
        about: What they are of.
    """
    with mpl.rc_context(STYLE):
        height = (2 * BAR_IN + 0.18) * len(scores) + 1.1
        figure = Figure(figsize=(BARS_WIDTH_IN, height), layout="constrained")
        axes: Any = figure.subplots()
        place = np.arange(len(scores), dtype=np.float64)
        parts = zip(*scores.values(), strict=True)
        looks = (
            ("in time", -0.2, PALE, "//"),
            ("performance: quality if in time", 0.2, BLUE, ""),
        )
        for values, (label, shift, color, hatch) in zip(parts, looks, strict=True):
            bars = axes.barh(
                place + shift, values, 0.38, label=label, color=color, hatch=hatch, edgecolor=INK,
                lw=0.6,
            )  # fmt: skip
            axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=4, fontsize=9)
        axes.set_yticks(place, list(scores), fontsize=11, color=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.08)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.grid(axis="y", visible=False)
        axes.set_axisbelow(True)
        axes.set_title(about, loc="left", pad=26)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, fontsize=9.5)
    return figure


def highest_rates(series: Mapping[str, Series]) -> tuple[float, float]:
    """Returns the ends of the rate axis and of the mix axis that hold every policy's."""
    tops = [_tops(one) for one in series.values()]
    return max(top[0] for top in tops) * 1.12, max(top[1] for top in tops) * 1.12


def burst_figure(
    series: Mapping[str, Series],
    titles: Mapping[str, str],
    *,
    tiers: Sequence[str],
    phases: Sequence[tuple[str, float]],
    deadline_s: float,
    highest: tuple[float, float],
) -> Figure:
    """Draws rate, mix, latency and quality over time.

    Args:
        series: Time series by policy; one column each.
        titles: Column title by policy.
        tiers: Tier names, lowest quality first.
        phases: Name and length in seconds of each phase, in time order.
        deadline_s: Drawn as a line in the latency row.
        highest: Ends of the rate axis and of the mix axis, the same in every figure of a page.
    """
    with mpl.rc_context(STYLE):
        width = COLUMN_WIDTH_IN * max(1, len(series)) + 0.8
        figure = Figure(figsize=(width, HEIGHT_IN), layout="constrained")
        grid = figure.subplots(
            4, len(series), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 3, 3, 3)
        )
        for column, (policy, one) in enumerate(series.items()):
            axes = [grid[row][column] for row in range(4)]
            axes[0].set_title(titles[policy], pad=18)
            _rate(axes[0], one)
            _mix(axes[1], one, tiers)
            _latency(axes[2], one, deadline_s)
            _quality(axes[3], one)
            for row, each in enumerate(axes):
                _phase_bands(each, phases, named=row == 0)
            axes[3].set_xlabel("seconds")
        # The columns share their scales, so limits are set once everything is drawn.
        for row in (0, 1):
            grid[row][0].set_ylim(0, highest[row])
        labels = ("requests/s", "answers/s by tier", "latency, ms", "quality")
        for row, label in enumerate(labels):
            grid[row][0].set_ylabel(label)
            grid[row][-1].legend(loc="upper right", fontsize=8, handlelength=1.4)
    return figure


def _tops(one: Series) -> tuple[float, float]:
    """Highest value of the rate row and of the mix row."""
    answered = np.sum(list(one.mix.values()), axis=0) if one.mix else np.zeros(1)
    return max(1.0, float(one.offered_rps.max())), max(1.0, float(answered.max()))


def _rate(axes: Any, one: Series) -> None:
    axes.fill_between(one.time_s, one.offered_rps, step="mid", color=PALE, label="offered")
    axes.plot(one.time_s, one.on_time_rps, color=BLUE, lw=1.8, label="answered on time")


def _mix(axes: Any, one: Series, tiers: Sequence[str]) -> None:
    layers = [one.mix[tier] for tier in reversed(tiers)]
    colors = [TIER_COLORS[i % len(TIER_COLORS)] for i in reversed(range(len(tiers)))]
    areas = axes.stackplot(one.time_s, layers, labels=list(reversed(tiers)), colors=colors)
    for area, index in zip(areas, reversed(range(len(tiers))), strict=True):
        area.set(hatch=TIER_HATCHES[index % len(TIER_HATCHES)], edgecolor=INK, linewidth=0.4)


def _latency(axes: Any, one: Series, deadline_s: float) -> None:
    axes.plot(one.time_s, one.p99_ms, color=FAINT, lw=1.6, ls=":", label="p99")
    axes.plot(one.time_s, one.p50_ms, color=INK, lw=1.8, label="p50")
    axes.axhline(deadline_s * 1e3, color=SOFT, lw=1.2, ls="--", label="deadline")
    axes.set_ylim(bottom=0, top=deadline_s * 1e3 * 1.6)


def _quality(axes: Any, one: Series) -> None:
    axes.plot(one.time_s, one.quality, color=VIOLET, lw=1.4, ls="--", label="of answers on time")
    axes.plot(one.time_s, one.performance, color=INK, lw=1.9, label="x on time (performance)")
    axes.set_ylim(0, 1.32)
    axes.set_yticks(np.linspace(0, 1, 6))


def _phase_bands(axes: Any, phases: Sequence[tuple[str, float]], *, named: bool) -> None:
    start_s = 0.0
    for index, (name, length_s) in enumerate(phases):
        if index % 2:
            axes.axvspan(start_s, start_s + length_s, color=BAND, zorder=0, lw=0)
        if named:
            axes.text(
                start_s + length_s / 2, 1.02, name, transform=axes.get_xaxis_transform(),
                ha="center", va="bottom", fontsize=8.5, color=SOFT,
            )  # fmt: skip
        start_s += length_s
    axes.set_xlim(0, start_s)
