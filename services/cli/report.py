"""``tiercel report``: what the mesh saved, and what it cost in quality."""

from __future__ import annotations

import pathlib
import time
from typing import Annotated

import typer

from services.cli.files import write_text
from services.cli.options import ConfigOption, JsonOption, MeshOption, MonitorOption
from services.cli.output import console, note, print_json
from services.cli.spans import DAY_S, moment_s, span_s
from services.local.errors import InputError
from services.local.target import resolve
from services.report.facts import STEPS_S, report_facts
from services.report.read import read_minutes
from services.report.text import render

MINUTE_S = 60.0
LONGEST_S = 30 * DAY_S


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("report")(report)


def report(
    since: Annotated[
        str, typer.Option(help="So long up to now, e.g. 30m, 2h, 1d [default: 1h].")
    ] = "",
    start: Annotated[
        str, typer.Option("--from", help="From this moment on, 14:30 or 2026-11-29T14:30, UTC.")
    ] = "",
    end: Annotated[str, typer.Option("--to", help="Up to this moment [default: now].")] = "",
    by: Annotated[str, typer.Option(help="Also a row for each minute, hour or day.")] = "",
    html: Annotated[
        pathlib.Path | None, typer.Option(help="Also write a page with a picture to this file.")
    ] = None,
    mesh: MeshOption = "",
    config: ConfigOption = None,
    monitor: MonitorOption = "",
    as_json: JsonOption = False,
) -> None:
    """Say what became of requests: in time, quality, what was given up, devices saved.

    The load monitors keep the books for two days, minute by minute.
    """
    if by and by not in STEPS_S:
        raise InputError(f"--by: expected one of {', '.join(STEPS_S)}, got {by!r}")
    start_s, end_s = _time(since, start, end)
    address = resolve(mesh, load_monitor=monitor, config=config).need("load_monitor")
    minutes = read_minutes(address, start_s, end_s)
    facts = report_facts(minutes, start_s, end_s, by)
    if html is not None:
        # Drawing takes a second to load.
        from services.report.page import report_page

        write_text(html, report_page(report_facts(minutes, start_s, end_s, by or "minute")))
        note(f"page: {html}")
    if as_json:
        print_json(facts)
    else:
        console().print(render(facts))


def _time(since: str, start: str, end: str) -> tuple[float, float]:
    """Returns the time asked for, whole minutes, seconds since 1970."""
    if since and start:
        raise InputError("--since: not together with --from")
    now_s = time.time()
    end_s = moment_s(end, "--to", now_s) if end else now_s
    if start:
        start_s = moment_s(start, "--from", now_s)
    else:
        start_s = end_s - span_s(since or "1h", "--since", LONGEST_S)
    if start_s >= end_s:
        raise InputError("--from: must be before --to" if start else "--to: must be later")
    if start_s > now_s:
        raise InputError(f"{'--from' if start else '--to'}: must not be in the future")
    return start_s // MINUTE_S * MINUTE_S, end_s
