"""The report as a page that stands alone: a verdict and a picture first."""

from __future__ import annotations

from typing import Any

from services.report.figure import quality_figure
from trainer.evaluation.report import style
from trainer.evaluation.report.html import render


def report_page(facts: dict[str, Any]) -> str:
    """Returns the page of `report_facts`, which are divided into rows."""
    rows = [row for row in facts["rows"] if row["ended"]]
    picture = style.inline_svg(quality_figure(facts["rows"], facts["by"])) if rows else ""
    return render(
        __package__,
        "report.html.jinja",
        filters={
            "share": lambda value: "-" if value is None else f"{value:.3f}",
            "share4": lambda value: "-" if value is None else f"{value:.4f}",
            "ms": lambda value: "-" if value is None else f"{value * 1e3:.0f}",
        },
        facts=facts,
        rows=rows,
        picture=picture,
    )
