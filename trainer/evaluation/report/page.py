"""An evaluation's files: ``report.json`` for machines, ``report.html`` for people."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from trainer.evaluation.policies import zeroed_name
from trainer.evaluation.report import figures, study_tables, tables
from trainer.evaluation.report.html import render
from trainer.evaluation.report.policy_lines import Palette
from trainer.evaluation.report.regret_figure import regret_figure
from trainer.evaluation.report.style import inline_svg
from trainer.evaluation.report.tables import Table
from trainer.evaluation.targets.shifts import COPES

Report = Mapping[str, Any]


def write_json(path: pathlib.Path, report: Report) -> None:
    """Writes the report; numbers that are none are null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_page(path: pathlib.Path, report: Report, drawn: Mapping[str, Figure]) -> None:
    """Writes the page; plots and style are inside it.

    Args:
        path: where to.
        report: the report.
        drawn: its plots by name, from `report_figures`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = {name: inline_svg(figure) for name, figure in drawn.items()}
    page = render(
        __package__,
        "evaluation.html.jinja",
        filters={"found": tables.found},
        report=report,
        pictures=pictures,
        headlines=report["headlines"],
        sections=report_tables(report),
        policies=report["policies"],
        studies=study_sections(report),
    )
    path.write_text(page, encoding="utf-8")


def palette(report: Report) -> Palette:
    """Colors of the report's policies."""
    return Palette(
        list(report["policies"]),
        report["learned"],
        report["always_small"][0]["policy"],
        report["load_unit"]["policy"],
    )


def report_figures(report: Report) -> dict[str, Figure]:
    """Every plot of a report by name."""
    colors = palette(report)
    is_papers = report["is_papers"]
    small = report["always_small"][0]["policy"]
    drawn = {
        "answer": figures.answer_figure(report["answer"], report["sweep"], small, colors),
        "sweep": figures.sweep_figure(report["sweep"], colors),
        "share": figures.share_figure(report["sweep"], colors),
        "windows": figures.windows_figure(
            report["windows"], report["window_bounds"], colors, is_papers=is_papers
        ),
        "gpus": figures.gpus_figure(report["per_gpu"], colors, is_papers=is_papers),
        "shifts": figures.shifts_figure(report["shifts"], colors),
        "soft": figures.sweep_figure(report["soft"], colors),
    }
    own = [r for r in report["regret_points"] if r["policy"] == report["learned"]]
    if own:
        drawn["regret"] = regret_figure([row for row in own if row["safety_net"]])
    return drawn


def report_tables(report: Report) -> dict[str, list[Table]]:
    """Every table of a report by section."""
    return {
        "sweep": tables.sweep_tables(report["sweep"]),
        "soft": tables.sweep_tables(report["soft"], "Soft deadlines"),
        "loads": [tables.ratio_table(report["load_ratio"])],
        "windows": [
            *tables.window_tables(report["window_loads"], report["window_bound_loads"]),
            tables.window_count_table(report["window_counts"]),
        ],
        "gpus": [tables.gpu_table(report["per_gpu"])],
        "shifts": [
            tables.shift_table(report["shifts"], shown_in_shifts(report)),
            *retrained_tables(report),
        ],
        "regret": regret_tables(report),
    }


def regret_tables(report: Report, nets: Sequence[bool] = (True, False)) -> list[Table]:
    """Regret over families, over the points always-small copes with, and point by point."""

    def chosen(part: str) -> list[tables.Row]:
        return [row for row in report[part] if row["safety_net"] in nets]

    made = [
        tables.regret_table(chosen("regret")),
        tables.regret_table(chosen("regret_where_small_copes"), COPES),
    ]
    learned = report["learned"]
    if learned and report["regret_points"]:
        points = report["regret_points"]
        made.append(tables.regret_point_table(points, learned, zeroed_name(learned)))
    return made


def retrained_tables(report: Report) -> list[Table]:
    """The comparison with retrained policies, if it was given."""
    study = report["retrained"]
    if not study["rows"]:
        return []
    made = (
        study_tables.retrained_table(study["rows"]),
        study_tables.training_table(study["training"]),
    )
    return list(made)


def study_sections(report: Report) -> list[Table]:
    """Tables of the studies that were run."""
    made = {"picker": study_tables.picker_table, "crosscheck": study_tables.crosscheck_table}
    return [make(report[name]["rows"]) for name, make in made.items() if report[name]["rows"]]


def shown_in_shifts(report: Report) -> list[str]:
    """Policies the table of shifts has room for: learned, the regret's baseline, always-small."""
    wanted = (report["learned"], "price", report["always_small"][0]["policy"])
    return [name for name in dict.fromkeys(wanted) if name in report["policies"]]
