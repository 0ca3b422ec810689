"""The picture of where regret is removed."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from trainer.evaluation.report.figures import WIDTH_IN, load_axis
from trainer.evaluation.report.policy_lines import OTHER_COLORS
from trainer.evaluation.report.style import SOFT, STYLE
from trainer.evaluation.report.tables import Row
from trainer.evaluation.shifts import NOMINAL
from trainer.evaluation.targets.shifts import REGRET_REMOVED

LOWEST, HIGHEST = -0.6, 1.0


def regret_figure(rows: Sequence[Row]) -> Figure:
    """Share of price's regret removed over load, a panel per family, a line per shift.

    Hollow: points that not even always-small copes with. Shares below the axis stand on its edge.
    """
    families = list(dict.fromkeys(row["family"] for row in rows))
    loads = sorted({row["load"] for row in rows})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 4.2), layout="constrained")
        panels = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
        for axes, family in zip(panels, families, strict=True):
            chosen = [row for row in rows if row["family"] == family]
            for index, shift in enumerate(dict.fromkeys(row["shift"] for row in chosen)):
                color = OTHER_COLORS[index % len(OTHER_COLORS)]
                curve = [r for r in chosen if r["shift"] == shift and r["removed"] is not None]
                curve.sort(key=lambda row: row["load"])
                shown = [min(HIGHEST, max(LOWEST, row["removed"])) for row in curve]
                axes.plot([row["load"] for row in curve], shown, color=color, lw=1.4, label=shift)
                for row, value in zip(curve, shown, strict=True):
                    face = color if row["small_copes"] else "none"
                    axes.plot(row["load"], value, "o", ms=4.5, mfc=face, mec=color)
            axes.axhline(0.0, color=SOFT, lw=1)
            axes.axhline(REGRET_REMOVED, color=SOFT, lw=1, ls="--")
            load_axis(axes, loads)
            axes.set_ylim(LOWEST - 0.05, HIGHEST + 0.05)
            axes.set_title(family or NOMINAL)
            axes.set_xlabel("load")
            axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        panels[0].set_ylabel("regret removed")
    return figure
