"""``tiercel quality``: measures the quality table through the live endpoints."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Annotated, Any

import typer
from rich.progress import Progress

from services.calibrate.quality import QualityMeasurement, measure_quality
from services.calibrate.tiers import LiveTier, tiers_of_mesh
from services.cli.options import ConfigOption, JsonOption, MeshOption, MonitorOption
from services.cli.output import console, note, print_json, table
from services.local.target import resolve
from trainer.reference_tiers import tasks as reference_tasks

DEFAULT_OUT = pathlib.Path("build") / "quality" / "measured.toml"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("quality")(quality)


def quality(
    examples: Annotated[
        int, typer.Option(min=1, max=10_000, help="Held-out examples per task and tier.")
    ] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Which held-out examples.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the table.")] = "reference",
    out: Annotated[pathlib.Path, typer.Option(help="Quality file to write.")] = DEFAULT_OUT,
    monitor: MonitorOption = "",
    mesh: MeshOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score every tier on held-out examples by exact match and write the quality table."""
    tiers = tiers_of_mesh(resolve(mesh, load_monitor=monitor, config=config))
    measured = asyncio.run(with_bars(tiers, examples, seed, hidden=as_json))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        measured.to_toml(name, f"Measured by `tiercel quality`, seed {seed}."), encoding="utf-8"
    )
    if as_json:
        print_json(measured.to_json())
        return
    console().print(quality_table(measured))
    note(f"written: {out}")


async def with_bars(
    tiers: list[LiveTier], examples: int, seed: int, *, hidden: bool
) -> QualityMeasurement:
    """Measures with one progress bar per tier."""
    total = examples * len(reference_tasks.task_names())
    with Progress(console=console(), transient=True, disable=hidden) as bars:
        tasks: dict[str, Any] = {
            each.tier: bars.add_task(f"quality of {each.tier}", total=total) for each in tiers
        }
        return await measure_quality(
            tiers,
            example_count=examples,
            seed=seed,
            on_answer=lambda tier: bars.advance(tasks[tier]),
        )


def quality_table(measured: QualityMeasurement) -> Any:
    """Table of standardised quality with raw scores and their intervals."""
    rows = []
    for task, row in measured.scores.items():
        cells = []
        for tier in measured.tiers:
            low, high = row[tier].interval
            standard = measured.standardised(task, tier)
            cells.append(f"{standard:.3f}  (raw {row[tier].share:.3f}, {low:.2f}-{high:.2f})")
        rows.append((task, *cells))
    title = "quality: score / score of the largest tier (raw exact match, 95 % interval)"
    return table(title, ("task", *measured.tiers), rows)
