"""``tiercel bench``: what decisions, requests and the shared picture cost, beside their budgets."""

from __future__ import annotations

import asyncio
import json
import pathlib
import shlex
import sys
from typing import Annotated, Any

import typer
import uvloop

from services.cli.files import check_writable, write_text
from services.cli.options import JsonOption
from services.cli.output import console, note, print_json, table
from services.cli.progress import StageProgress
from services.local.errors import InputError
from services.local.run import run_owning_children
from services.local.supervisor import kill_descendants


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("bench")(bench)


def bench(
    suite: Annotated[
        str, typer.Option(help="quick (three minutes), full, or smoke (seconds: does it run?).")
    ] = "quick",
    only: Annotated[
        list[str] | None, typer.Option(help="Metric or group to measure; repeatable.")
    ] = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="JSON file to write the report to.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure every budget on this machine, each beside its reference in the same run."""
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out: no folder {out.parent}")
    if out is not None:
        check_writable(out, "--out")
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    raise typer.Exit(run_owning_children(_run(suite, only or [], out, as_json), note))


async def _run(suite: str, only: list[str], out: pathlib.Path | None, as_json: bool) -> int:
    # The evaluation's facts are needed here only; other commands start faster without them.
    from services.bench.run import run_suite

    command = shlex.join(["tiercel", *(pathlib.Path(each).name for each in sys.argv[1:])])
    try:
        with StageProgress() as display:
            report = await run_suite(suite, only, command=command, say=display.show)
    finally:
        kill_descendants()
    if out is not None:
        write_text(out, json.dumps(report, indent=1, allow_nan=False) + "\n")
    if as_json:
        print_json(report)
    else:
        _show(report)
    return 0


def _show(report: dict[str, Any]) -> None:
    rows = [
        (
            name,
            _number(each["value"], each["value_spread"]),
            "-" if each["reference"] is None
            else _number(each["reference"], each["reference_spread"]),
            "-" if each["ratio"] is None
            else _number(each["ratio"], each["ratio_spread"]),
            each["unit"],
            each["budget"],
            {True: "yes", False: "no", None: "-"}[each["within_budget"]],
        )
        for name, each in report["metrics"].items()
    ]  # fmt: skip
    columns = ("metric", "value", "reference", "ratio", "unit", "budget", "within")
    terminal = console()
    terminal.print(table(f"bench {report['suite']}", columns, rows))
    for name, reason in report["missing"].items():
        terminal.print(f"{name} is left out: {reason}", markup=False, soft_wrap=True)
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    terminal.print(
        f"{report['commit']}; {machine['cpu']}, {machine['cores']} cores; Python "
        f"{machine['python']}; {versions}; {report['took_s']:.0f} s",
        markup=False,
        soft_wrap=True,
    )


def _number(value: float, spread: float | None) -> str:
    if spread is None:
        return f"{value:,.3g}"
    return f"{value:,.3g} ±{spread:.2g}" if value < 1_000 else f"{value:,.0f} ±{spread:,.0f}"
