"""Plots of an evaluation, drawn from the rows of its report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from trainer.evaluation.answer import rate_text
from trainer.evaluation.plan import PAPER_GPU_RATIO, PAPER_WINDOW_RATIOS
from trainer.evaluation.report.policy_lines import LARGE_COLOR, Palette
from trainer.evaluation.report.style import INK, SOFT, STYLE
from trainer.evaluation.report.tables import Row
from trainer.evaluation.windows import WINDOW_LEVELS, WINDOW_SHARE, level_name
from trainer.simulation.setting import HOLDS

WIDTH_IN = 11.5


def _curves(rows: Iterable[Row], net: bool = True) -> dict[str, list[Row]]:
    """Rows by policy, by load."""
    curves: dict[str, list[Row]] = {}
    for row in rows:
        if row["safety_net"] is net:
            curves.setdefault(row["policy"], []).append(row)
    return {name: sorted(curve, key=lambda row: row["load"]) for name, curve in curves.items()}


def _draw(axes: Any, curve: Sequence[Row], column: str, palette: Palette) -> None:
    """A policy's line, with its 95 % band if the eye should follow it."""
    known = [row for row in curve if row[column] is not None]
    if not known:
        return
    policy = known[0]["policy"]
    style = palette.line(policy)
    loads = [row["load"] for row in known]
    axes.plot(loads, [row[column] for row in known], **style)
    ends = [row.get(f"{column}_ci95") for row in known]
    if palette.is_strong(policy) and all(ends):
        low, high = zip(*ends, strict=True)
        axes.fill_between(loads, low, high, color=style["color"], alpha=0.14, lw=0, zorder=2)


def load_axis(axes: Any, loads: Sequence[float]) -> None:
    """Logarithmic loads with plain numbers."""
    axes.set_xscale("log")
    low, high = min(loads), max(loads)
    ticks = [t for t in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 25, 50) if low * 0.99 <= t <= high * 1.01]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.set_xlim(low * 0.95, high * 1.05)


def sweep_figure(rows: Sequence[Row], palette: Palette, *, net: bool = True) -> Figure:
    """Availability and performance over load, one line per policy, and the bound."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 5.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        curves = _curves(rows, net)
        loads = sorted({row["load"] for row in rows})
        for curve in curves.values():
            _draw(left, curve, "availability", palette)
            _draw(right, curve, "performance", palette)
        some = next(iter(curves.values()))
        for column, dashes, label in (
            ("bound", "-", "bound"),
            ("fluid_reference", ":", "fluid reference"),
        ):
            known = [row for row in some if row.get(column) is not None]
            if known:
                right.plot(
                    [row["load"] for row in known], [row[column] for row in known],
                    color=INK, lw=1.5, ls=dashes, label=label, zorder=6,
                )  # fmt: skip
        left.axhline(HOLDS, color=SOFT, lw=1, ls="--")
        left.text(loads[0], HOLDS - 0.015, f" {HOLDS}: holds", va="top", fontsize=8, color=SOFT)
        for axes, title in ((left, "availability"), (right, "performance")):
            axes.set_title(title)
            load_axis(axes, loads)
            axes.set_ylim(0, 1.03)
            axes.set_xlabel("load, multiples of what static-large holds")
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=8, handlelength=1.6)
    return figure


def share_figure(rows: Sequence[Row], palette: Palette) -> Figure:
    """Performance as a share of the bound over load; of the fluid reference if none is known."""
    bounded = any(row["bound_share"] is not None for row in rows)
    column = "bound_share" if bounded else "fluid_share"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 5.0), layout="constrained")
        axes = figure.subplots()
        for curve in _curves(rows).values():
            _draw(axes, curve, column, palette)
        axes.axhline(0.96, color=SOFT, lw=1, ls="--")
        load_axis(axes, sorted({row["load"] for row in rows}))
        axes.set_ylim(0.7, 1.005 if bounded else 1.06)
        axes.set_title("share of the bound" if bounded else "share of the fluid reference")
        axes.set_xlabel("load, multiples of what static-large holds")
        figure.legend(loc="outside right center", fontsize=8, handlelength=1.6)
    return figure


def answer_figure(found: Row, rows: Sequence[Row], small: str, palette: Palette) -> Figure:
    """What the best policy earns over the rate, beside the static ones, and what each holds."""
    large = found["static_large"]
    names = dict.fromkeys((small, large, found["policy"]))
    curves = {name: curve for name, curve in _curves(rows).items() if name in names}
    marks = dict(zip(names, "so^", strict=False))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 4.2), layout="constrained")
        axes = figure.subplots()
        for name, curve in curves.items():
            rates = [row["rate_rps"] for row in curve]
            line = {**palette.line(name), "marker": marks[name], "ms": 5}
            axes.plot(rates, [row["performance"] for row in curve], **line)
        held = {found["policy"]: found["held_rps"], large: found["static_large_held_rps"]}
        for name, rate in held.items():
            if rate:
                color = palette.line(name)["color"]
                axes.axvline(rate, color=color, lw=1.2, ls="--")
                axes.text(
                    rate, 0.03, f" {name} holds {rate_text(rate)}/s",
                    rotation=90, va="bottom", ha="right", fontsize=8, color=color,
                )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("requests/s")
        axes.set_title(
            "performance: mean quality of what is answered in time, nothing for the rest"
        )
        figure.legend(fontsize=9, loc="outside right center")
    return figure


def windows_figure(
    rows: Sequence[Row], bounds: Sequence[Row], palette: Palette, *, is_papers: bool = True
) -> Figure:
    """Share of 10 s windows above each level over load, a column per workload.

    Black: the share of windows that any policy could keep above, by the bound of each window.

    Dotted: the paper's factor times static-large's share; where a policy's line is above it, the
    paper's claim is reached at that load.
    """
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 5.4), layout="constrained")
        grid = figure.subplots(
            len(WINDOW_LEVELS), len(workloads), sharex=True, sharey=True, squeeze=False
        )
        for column, workload in enumerate(workloads):
            chosen = [row for row in rows if row["workload"] == workload]
            most = [row for row in bounds if row["workload"] == workload]
            for line, level in enumerate(WINDOW_LEVELS):
                _windows_panel(grid[line][column], chosen, most, palette, level, is_papers)
            grid[0][column].set_title(workload)
            grid[-1][column].set_xlabel("load")
        for line, level in enumerate(WINDOW_LEVELS):
            grid[line][0].set_ylabel(f"windows above {level:g}")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=8, handlelength=1.6)
    return figure


def _windows_panel(
    axes: Any,
    rows: Sequence[Row],
    bounds: Sequence[Row],
    palette: Palette,
    level: float,
    is_papers: bool,
) -> None:
    column = level_name(level)
    if bounds:
        axes.plot(
            [row["load"] for row in bounds], [row[column] for row in bounds],
            color=INK, lw=1.4, label="bound", zorder=6,
        )  # fmt: skip
    curves = _curves(rows)
    for curve in curves.values():
        _draw(axes, curve, column, palette)
    static = curves.get(palette.large)
    if static and is_papers:
        factor = PAPER_WINDOW_RATIOS[level]
        marked = [min(1.0, factor * row[column]) for row in static]
        axes.plot(
            [row["load"] for row in static], marked,
            color=LARGE_COLOR, lw=1.2, ls=":", label="paper's ratio to static-large",
        )  # fmt: skip
        axes.text(
            0.97, 0.95, f"dotted: {factor:g}x", transform=axes.transAxes,
            ha="right", va="top", fontsize=7.5, color=LARGE_COLOR,
        )  # fmt: skip
    axes.axhline(WINDOW_SHARE, color=SOFT, lw=0.9, ls="--")
    load_axis(axes, sorted({row["load"] for row in rows}))
    axes.set_ylim(-0.02, 1.03)


def gpus_figure(rows: Sequence[Row], palette: Palette, *, is_papers: bool = True) -> Figure:
    """GPUs static-large needs to equal the fleet, and performance per GPU against 8 of them."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        loads = sorted({row["load"] for row in rows})
        for curve in _curves(rows).values():
            _draw(left, curve, "static_large_devices", palette)
            _draw(right, curve, "per_gpu_ratio", palette)
        left.axhline(rows[0]["devices"], color=SOFT, lw=1, ls="--")
        left.set_yscale("log", base=2)
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        left.set_title(f"GPUs static-large needs to equal {rows[0]['devices']}")
        top = max((row["per_gpu_ratio"] for row in rows if row["per_gpu_ratio"]), default=1.0)
        if is_papers:
            right.axhline(PAPER_GPU_RATIO, color=LARGE_COLOR, lw=1.2, ls=":")
            right.text(
                loads[0], PAPER_GPU_RATIO, f" paper: {PAPER_GPU_RATIO:g}x",
                va="bottom", fontsize=8, color=LARGE_COLOR,
            )  # fmt: skip
        # With 8 GPUs overrun completely the ratio has no limit; the axis has.
        right.set_ylim(0, min(12.0, 1.1 * max(top, PAPER_GPU_RATIO)))
        right.set_title("performance per GPU against 8 static GPUs")
        for axes in (left, right):
            load_axis(axes, loads)
            axes.set_xlabel(f"load, multiples of what static-large holds on {rows[0]['devices']}")
        right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.0, 0.92))
    return figure


def shifts_figure(rows: Sequence[Row], palette: Palette) -> Figure:
    """Performance over load in every shift, small multiples."""
    shifts = list(dict.fromkeys(row["shift"] for row in rows))
    columns = 4
    lines = math.ceil(len(shifts) / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 2.2 * lines + 0.4), layout="constrained")
        grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
        cells = [axes for line in grid for axes in line]
        for axes, shift in zip(cells, shifts, strict=False):
            chosen = [row for row in rows if row["shift"] == shift]
            curves = _curves(chosen)
            for curve in curves.values():
                _draw(axes, curve, "performance", palette)
            some = [row for row in next(iter(curves.values())) if row["bound"] is not None]
            axes.plot(
                [row["load"] for row in some], [row["bound"] for row in some],
                color=INK, lw=1.2, label="bound", zorder=6,
            )  # fmt: skip
            axes.set_title(shift, fontsize=9)
            load_axis(axes, sorted({row["load"] for row in chosen}))
            axes.set_ylim(0.4, 1.02)
        for axes in cells[len(shifts) :]:
            axes.set_visible(False)
        handles, labels = cells[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=8, handlelength=1.6)
    return figure
