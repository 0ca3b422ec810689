"""The report's picture: quality earned beside what it might have been, above the traffic."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from services.report.facts import STEPS_S
from trainer.evaluation.report.style import BAND, BLUE, INK, PALE, SOFT, STYLE

_WIDTH_IN, _HEIGHT_IN = 9.6, 5.2


def quality_figure(rows: Sequence[dict[str, Any]], by: str) -> Figure:
    """Draws the rows of a report.

    Args:
        rows: Of `report_facts`, at least one.
        by: What each of them is, one of `STEPS_S`.
    """
    step = datetime.timedelta(seconds=STEPS_S[by])
    begins = [datetime.datetime.fromisoformat(row["start_time"]) for row in rows]
    # Where nobody watched there is no line.
    times: list[datetime.datetime] = []
    places: list[int] = []
    for index, begin in enumerate(begins):
        if index and begin > begins[index - 1] + step:
            times += [begins[index - 1] + step] * 2
            places += [index - 1, -1]
        times.append(begin)
        places.append(index)
    times.append(begins[-1] + step)
    places.append(len(rows) - 1)

    def values(key: str) -> NDArray[np.float64]:
        found = [rows[place][key] if place >= 0 else None for place in places]
        return np.array([np.nan if each is None else each for each in found], np.float64)

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        _quality(top, times, values)
        _traffic(bottom, times, values, STEPS_S[by])
        locator: Any = AutoDateLocator()  # type: ignore[no-untyped-call]
        bottom.xaxis.set_major_locator(locator)
        bottom.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        bottom.set_xlabel("UTC")
        for axes in (top, bottom):
            axes.set_xlim(times[0], times[-1])
    return figure


def _quality(axes: Any, times: Any, values: Any) -> None:
    earned, largest, bound = values("quality"), values("largest_quality"), values("bound")
    axes.fill_between(times, earned, largest, step="post", color=BAND, label="given up")
    axes.step(times, largest, where="post", color=SOFT, ls="--", lw=1.2, label="always-large")
    if np.isfinite(bound).any():
        axes.step(times, bound, where="post", color=INK, ls=":", lw=1.4, label="bound in hindsight")
    axes.step(times, earned, where="post", color=BLUE, lw=1.8, label="earned")
    axes.set_ylabel("quality per request")
    axes.set_ylim(min(0.98, max(0.0, _least(earned) - 0.05)), 1.02)
    axes.legend(loc="lower left", ncols=4, fontsize=9)


def _traffic(axes: Any, times: Any, values: Any, step_s: int) -> None:
    ended = values("ended") / step_s
    missed = ended * (1.0 - np.nan_to_num(values("in_time"), nan=1.0))
    axes.fill_between(times, ended, step="post", color=PALE, label="ended")
    axes.fill_between(
        times, missed, step="post", color=INK, hatch="//", label="late, refused or failed"
    )
    axes.set_ylabel("requests/s")
    axes.set_ylim(bottom=0.0)
    axes.legend(loc="upper left", ncols=2, fontsize=9)


def _least(values: NDArray[np.float64]) -> float:
    return float(np.nanmin(values)) if np.isfinite(values).any() else 0.0
