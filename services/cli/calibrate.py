"""``tiercel calibrate``: measures a latency profile of the live tiers."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Annotated, Any

import typer
from rich.progress import Progress

from services.calibrate.calibration import calibrate as measure
from services.calibrate.result import Calibration
from services.calibrate.tiers import LiveTier, tiers_of_mesh
from services.cli.options import ConfigOption, JsonOption, MeshOption, MonitorOption
from services.cli.output import console, note, print_json, table
from services.local.target import resolve

DEFAULT_OUT = pathlib.Path("build") / "profiles" / "measured.toml"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("calibrate")(calibrate)


def calibrate(
    name: Annotated[str, typer.Option(help="Name of the profile.")] = "reference",
    run_s: Annotated[
        float, typer.Option(min=0.2, max=60, help="Seconds per closed-loop run.")
    ] = 1.2,
    seed: Annotated[int, typer.Option(min=0, help="Which questions are asked.")] = 0,
    out: Annotated[pathlib.Path, typer.Option(help="Profile file to write.")] = DEFAULT_OUT,
    monitor: MonitorOption = "",
    mesh: MeshOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how long an iteration of each tier takes; nothing else should load the mesh."""
    tiers = tiers_of_mesh(resolve(mesh, load_monitor=monitor, config=config))
    measured = asyncio.run(with_bar(tiers, name, run_s, seed, hidden=as_json))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(measured.to_toml(), encoding="utf-8")
    if as_json:
        print_json(measured.to_json())
        return
    for each in calibration_tables(measured):
        console().print(each)
    note(f"written: {out} (took {measured.took_s:.0f} s)")


async def with_bar(
    tiers: list[LiveTier], name: str, run_s: float, seed: int, *, hidden: bool
) -> Calibration:
    """Measures with a progress bar."""
    with Progress(console=console(), transient=True, disable=hidden) as bars:
        bar = bars.add_task("calibrate", total=1.0)

        def on_step(text: str, share: float) -> None:
            bars.update(bar, description=text, completed=share)

        return await measure(tiers, name=name, run_s=run_s, seed=seed, on_step=on_step)


def calibration_tables(measured: Calibration) -> list[Any]:
    """The profile and the check of tiers side by side, as tables."""
    alone = [measured.unloaded_p50_s, measured.unloaded_p95_s]
    rows = [
        (
            tier,
            f"{fit.profile.step_s * 1e3:.3f}",
            f"{fit.profile.per_sequence_s * 1e3:.3f}",
            f"{fit.profile.per_prompt_token_s * 1e6:.1f}",
            f"{fit.profile.overhead_s * 1e3:.2f}",
            fit.profile.max_batch,
            " / ".join(f"{each[tier] * 1e3:.1f}" for each in alone),
            f"{fit.median_error:.3f} / {fit.mean_error:.3f}",
            fit.sample_count,
        )
        for tier, fit in measured.fits.items()
    ]
    columns = ("tier", "step ms", "per sequence ms", "per prompt token us", "overhead ms")
    more = ("batch", "alone p50 / p95 ms", "fit error median / mean", "answers")
    made = [table("latency profile", (*columns, *more), rows)]
    if measured.pairs:
        pair_rows = [
            (
                " beside ".join(pair.tiers),
                " / ".join(f"{value * 1e3:.0f}" for value in pair.measured_s),
                " / ".join(f"{value * 1e3:.0f}" for value in pair.predicted_s),
                f"{pair.error:.2f}",
            )
            for pair in measured.pairs
        ]
        heads = ("tiers", "measured ms", "predicted ms", "largest error")
        made.append(table("two tiers at once (not used for the fit)", heads, pair_rows))
    return made
