"""What a live evaluation says."""

from __future__ import annotations

from services.live.compare import live, point
from services.live.report import live_figure, live_table, verdict
from tests.unit.services.live.subjects import PLAN, live_run

NEAR = point(PLAN, live_run(), live(live_run(latency_s=3.9)))
OFF = point(PLAN, live_run(), live(live_run(latency_s=2.0)))
BUSY = point(PLAN, live_run(busy=0.9), live(live_run()))


def test_every_point_stands_in_the_table_with_both_sides() -> None:
    """And with whether it counts, and why not."""
    table = live_table([NEAR, OFF, BUSY])
    assert [row[-1] for row in table.rows] == ["yes", "yes, off", "no: machine 90% busy"]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert table.rows[0][2] == "267\n263"


def test_the_verdict_leaves_out_what_does_not_count() -> None:
    """And says so if nothing counts."""
    said = verdict([NEAR, OFF, BUSY])
    assert said.startswith("1 of 2 runs that count")
    assert said.endswith("1 runs do not count.")
    assert verdict([BUSY]).startswith("None of 1 runs counts")


def test_the_plot_marks_what_does_not_count() -> None:
    """A hollow mark in each of the four panels."""
    figure = live_figure([NEAR, BUSY], "small", "large")
    for axes in figure.axes:
        marks = [line for line in axes.lines if line.get_marker() == "o"]
        assert [mark.get_markerfacecolor() == "none" for mark in marks] == [False, True]
