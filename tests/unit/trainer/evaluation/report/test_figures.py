"""Plots of an evaluation."""

from __future__ import annotations

from typing import Any

from trainer.evaluation.report.figures import sweep_figure
from trainer.evaluation.report.page import palette


def test_sweep_has_a_line_per_policy_and_the_bound(report: dict[str, Any]) -> None:
    """Availability on the left, performance with bound and fluid reference on the right."""
    left, right = sweep_figure(report["sweep"], palette(report)).axes
    policies = set(report["policies"])
    lines = [
        {name for name in map(str, (line.get_label() for line in axes.lines)) if name[0] != "_"}
        for axes in (left, right)
    ]
    assert lines == [policies, policies | {"bound", "fluid reference"}]


def test_policy_has_the_same_color_in_every_plot(report: dict[str, Any]) -> None:
    """What the eye follows in one plot it finds in the next."""
    left, right = sweep_figure(report["sweep"], palette(report)).axes
    colors = [{line.get_label(): line.get_color() for line in axes.lines} for axes in (left, right)]
    assert all(colors[0][name] == colors[1][name] for name in report["policies"])
