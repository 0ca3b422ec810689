"""The record of an evaluation that documents quote: a short page and small pictures."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from trainer.evaluation.report import study_tables, tables
from trainer.evaluation.report.page import (
    regret_tables,
    retrained_tables,
    shown_in_shifts,
    study_sections,
)
from trainer.evaluation.report.style import STYLE
from trainer.evaluation.report.tables import Table

NAME = "evaluation"
PICTURES = ("answer", "sweep", "share", "windows", "gpus", "shifts", "regret")
DPI = 80
COLORS = 96
DEFAULT_PROFILE = "opt-a100"


def write_record(
    folder: pathlib.Path, report: Mapping[str, Any], drawn: Mapping[str, Figure]
) -> None:
    """Writes evaluation.md and its pictures; what stands there from before is replaced.

    The record of another profile than DEFAULT_PROFILE has the profile in its name.

    Args:
        folder: where to.
        report: the report.
        drawn: its plots by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    profile = report["setting"]["profile"]
    name = NAME if profile == DEFAULT_PROFILE else f"{NAME}-{profile}"
    for picture in PICTURES:
        if picture in drawn:
            _save_small(drawn[picture], folder / f"{name}-{picture}.png")
    text = "\n".join(_lines(report, name, "regret" in drawn)) + "\n"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")


def _save_small(figure: Figure, path: pathlib.Path) -> None:
    """Writes a picture with few colors: a plot needs no more, and the record stays small."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=DPI)
    buffer.seek(0)
    picture = Image.open(buffer).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


_READERS = (
    "For people who doubt a number in the documents, or who look for one that is not there. "
    "How it is done: [evaluation](../evaluation.md)."
)


def _lines(report: Mapping[str, Any], name: str, drawn_regret: bool) -> list[str]:
    setting, run, unit = report["setting"], report["run"], report["load_unit"]
    sweep = [row for row in report["sweep"] if row["safety_net"]]
    machine, seeds = report["machine"], report["seeds"]
    ran = (
        f"`{report['command']}` on {run['date'][:10]}, commit {report['commit']}: "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python "
        f"{machine['python']}; {run['took_s'] / 60:.0f} min with {run['workers']} workers. "
        f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}, used in no training and no tuning; "
        "intervals are 95 % over seeds."
    )
    what = (
        f"{setting['devices']} devices, each with {', '.join(setting['tiers'])}; deadline "
        f"{1000 * setting['deadline_s']:.0f} ms. Load 1x is what {unit['policy']} holds: "
        f"{unit['rate_rps']:.1f} requests/s. Always-small holds "
        f"{report['always_small'][0]['load']:.1f}x. {_versions(report)}"
    )
    return [
        f"# Evaluation on {setting['profile']}",
        "",
        _READERS,
        "",
        f"**{report['answer']['sentence']}**",
        "",
        f"![What the best policy earns over the rate]({name}-answer.png)",
        "",
        ran,
        "",
        what,
        "",
        "## Targets",
        "",
        *_markdown(tables.headline_table(report["headlines"])),
        "",
        "## Load sweep",
        "",
        f"![Availability and performance over load]({name}-sweep.png)",
        f"![Share of the bound over load]({name}-share.png)",
        "",
        *_all(tables.sweep_tables(report["sweep"])),
        *_markdown(tables.ratio_table(report["load_ratio"])),
        "",
        *_learned_rows(report, sweep),
        "## Unpredictable workloads",
        "",
        f"![Share of windows above 0.96 and 0.98 over load]({name}-windows.png)",
        "",
        *_all(tables.window_tables(report["window_loads"], report["window_bound_loads"])),
        *_all([tables.window_count_table(report["window_counts"])]),
        "## GPUs",
        "",
        f"![GPUs that static-large needs]({name}-gpus.png)",
        "",
        *_all([tables.gpu_table([row for row in report["per_gpu"] if row["safety_net"]])]),
        "## Shifts, without retraining",
        "",
        f"![Performance in every shift]({name}-shifts.png)",
        "",
        *_all([tables.shift_table(report["shifts"], shown_in_shifts(report))]),
        *_all(retrained_tables(report)),
        "## Regret removed",
        "",
        *([f"![Share of regret removed over load]({name}-regret.png)", ""] if drawn_regret else []),
        *_all(regret_tables(report, nets=(True,))),
        *_all(tables.sweep_tables(report["soft"], "Soft deadlines")),
        *_all(study_sections(report)),
    ]


def _versions(report: Mapping[str, Any]) -> str:
    learned = report["learned"]
    if not learned:
        return "No learned policy."
    return f"Learned policy: {learned}, version `{report['policies'][learned]['version']}`."


def _learned_rows(report: Mapping[str, Any], sweep: Sequence[Mapping[str, Any]]) -> list[str]:
    """The learned policy's whole sweep: every number with its interval."""
    rows = [row for row in sweep if row["policy"] == report["learned"]]
    if not rows:
        return []
    return [*_markdown(study_tables.detail_table(rows, f"{report['learned']}, safety net on")), ""]


def _all(made: Sequence[Table]) -> list[str]:
    return [line for each in made for line in (*_markdown(each), "")]


def _markdown(made: Table) -> list[str]:
    """A table in Markdown, its title above it."""
    marks = ("---" if i < made.numeric_from else "---:" for i in range(len(made.columns)))
    return [
        f"**{made.title}**",
        "",
        _line(made.columns),
        _line(tuple(marks)),
        *(_line(row) for row in made.rows),
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
