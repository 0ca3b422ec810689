"""Plots of the demo: one axis per quantity, nothing told by colour alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from services.demo import figures
from services.demo.series import make_series
from tests.unit.services.demo.runs import TIERS, records

SHAPE: dict[str, Any] = {"tiers": TIERS, "phases": [("calm", 7.0)], "deadline_s": 0.4}


def test_one_quantity_has_one_axis_in_every_figure() -> None:
    """A policy that answers little is drawn by the scale of one that answers much."""
    few = records(2).select(np.arange(400) % 40 == 0)
    series = {"a": make_series(records(1), TIERS), "b": make_series(few, TIERS)}
    highest = figures.highest_rates(series)
    drawn = [
        figures.burst_figure({name: one}, {name: name}, highest=highest, **SHAPE)
        for name, one in series.items()
    ]
    limits = [[axes.get_ylim() for axes in figure.axes] for figure in drawn]
    assert limits[0] == limits[1]


def test_tiers_and_lines_differ_in_more_than_colour() -> None:
    """Areas have hatches of their own, lines of one plot styles of their own."""
    series = {"a": make_series(records(1), TIERS)}
    figure = figures.burst_figure(
        series, {"a": "a"}, highest=figures.highest_rates(series), **SHAPE
    )
    _, mix, latency, quality = figure.axes
    hatches = [area.get_hatch() or "" for area in mix.collections]
    assert len(set(hatches)) == len(TIERS)
    for axes in (latency, quality):
        styles = [(line.get_linestyle(), line.get_linewidth()) for line in axes.lines]
        assert len(set(styles)) == len(styles)


def test_bars_carry_their_values_and_their_kinds() -> None:
    """Both shares of each policy are written beside the bars, and told apart by hatching."""
    figure = figures.policy_bars({"price": (0.98, 0.84), "dqn": (0.99, 0.81)}, about="The burst")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["0.980", "0.990", "0.840", "0.810"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["price", "dqn"]
    hatches = [bars[0].get_hatch() or "" for bars in axes.containers]
    assert len(set(hatches)) == 2
    assert axes.get_xlim()[0] == 0
