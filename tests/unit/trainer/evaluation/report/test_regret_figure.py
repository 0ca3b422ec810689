"""The picture of removed regret."""

from __future__ import annotations

from typing import Any

from trainer.evaluation.report.regret_figure import regret_figure


def test_picture_of_removed_regret_has_a_panel_per_family(report: dict[str, Any]) -> None:
    """The rows of a policy that a report has are enough; points without regret are left out."""
    rows = report["regret_points"]
    own = [row for row in rows if row["policy"] == "static-small" and row["safety_net"]]
    figure = regret_figure([*own[1:], {**own[0], "removed": None}])
    assert len(figure.axes) == len({row["family"] for row in own})
