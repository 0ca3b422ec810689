"""``tiercel doctor``: what is wrong with a mesh, and what to do."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pathlib

import typer

from services.cli.options import (
    ConfigOption,
    JsonOption,
    MeshOption,
    MonitorOption,
    RouterOption,
    TrainerOption,
)
from services.cli.output import console, print_json, table
from services.local.doctor import examine
from services.local.errors import CommandError, InputError
from services.local.findings import BAD, Finding
from services.local.manifest import CONFIG_VARIABLE
from services.local.target import Target, resolve


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("doctor")(doctor)


def doctor(
    mesh: MeshOption = "",
    config: ConfigOption = None,
    router: RouterOption = None,
    monitor: MonitorOption = "",
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Check settings, files, endpoints, services, clocks, Redis, TLS and versions.

    Exit code 1 if anything is bad; what is odd works, or may.
    """
    named = config or os.environ.get(CONFIG_VARIABLE)
    try:
        target = resolve(mesh, router, monitor, trainer, config=config)
    except InputError:
        if not named:
            raise
        target = Target(config=str(named))  # the settings are wrong: that is a finding
    found = asyncio.run(examine(pathlib.Path(target.config) if target.config else None, target))
    if as_json:
        print_json([dataclasses.asdict(each) for each in found])
    else:
        _show(found)
    bad = sum(each.level == BAD for each in found)
    if bad:
        raise CommandError(f"{bad} of {len(found)} checks found something bad")


def _show(found: list[Finding]) -> None:
    rows = [(each.level, each.subject, each.text, each.advice) for each in found]
    columns = ("", "what", "found", "what to do")
    console().print(table("checks", columns, rows, numeric_from=len(columns)))
