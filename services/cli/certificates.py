"""``tiercel certificates``: self-made certificates for a mesh on one host."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from services.cli.output import note
from services.local.certificates import NAMES, make_certificates
from services.local.errors import InputError


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("certificates")(certificates)


def certificates(
    folder: Annotated[pathlib.Path, typer.Argument(help="Folder that gets them.")],
    name: Annotated[
        list[str] | None,
        typer.Option(help=f"Whose; may be given several times [default: {', '.join(NAMES)}]."),
    ] = None,
    days: Annotated[int, typer.Option(help="How long they hold, days.")] = 365,
) -> None:
    """Make or renew self-made certificates; services take renewed ones in without a restart."""
    if not 1 <= days <= 3_650:
        raise InputError(f"--days: must be 1 to 3650, got {days}")
    for each in name or ():
        if not each.replace("-", "").isalnum() or not each.isascii():
            raise InputError(f"--name: letters, digits and '-' only, got {each!r}")
    for made in make_certificates(folder, names=name or NAMES, days=days):
        note(f"{made}: ca.crt, tls.crt, tls.key, valid for {days} days")
