"""Tables of an evaluation."""

from __future__ import annotations

from typing import Any

from trainer.evaluation.report.tables import gpu_table, regret_point_table


def test_ratio_against_nothing_is_said_in_words(report: dict[str, Any]) -> None:
    """The table names the limit where the report has no number."""
    row = report["per_gpu"][0]
    known = {**row, "static_serves_nothing": False, "per_gpu_ratio": 2.5}
    none = {**row, "static_serves_nothing": True, "per_gpu_ratio": None}
    cells = [line[-1] for line in gpu_table([known, none]).rows]
    assert cells == ["2.50x", "static serves < 0.1%"]


def test_regret_point_by_point_has_a_line_per_point(report: dict[str, Any]) -> None:
    """Each point of the policy, safety net on, beside that of its zeroed twin."""
    rows = report["regret_points"]
    own = [row for row in rows if row["policy"] == "static-small" and row["safety_net"]]
    assert len(regret_point_table(rows, "static-small", "price").rows) == len(own)
