"""``tiercel certificates``: self-made certificates for a mesh on one host, and Redis' users."""

from __future__ import annotations

import pathlib
import re
from typing import Annotated

import typer

from services.cli.output import note
from services.common.addresses import parse_address
from services.local.certificates import NAMES, make_certificates
from services.local.errors import InputError
from services.local.redis_users import make_redis_users


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
    router_id: Annotated[
        str, typer.Option(help="Make the router's certificate that of this router alone.")
    ] = "",
    redis: Annotated[
        str,
        typer.Option(help="Address of Redis, host:port: make its users; passwords are drawn once."),
    ] = "",
    roots: Annotated[
        str, typer.Option(help="File of the roots as the services see it, for their Redis URL.")
    ] = "/run/tls/ca.crt",
) -> None:
    """Make or renew self-made certificates; services take renewed ones in without a restart."""
    if redis:
        try:
            parse_address(redis)
        except ValueError as error:
            raise InputError(f"--redis: {error}, got {redis!r}") from None
    if not 1 <= days <= 3_650:
        raise InputError(f"--days: must be 1 to 3650, got {days}")
    for each in name or ():
        if not each.replace("-", "").isalnum() or not each.isascii():
            raise InputError(f"--name: letters, digits and '-' only, got {each!r}")
    if router_id and not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", router_id):
        raise InputError(f"--router-id: 1 to 64 characters of [A-Za-z0-9_.-], got {router_id!r}")
    for made in make_certificates(folder, names=name or NAMES, days=days, router_id=router_id):
        note(f"{made}: ca.crt, tls.crt, tls.key, valid for {days} days")
    if redis:
        for path in make_redis_users(folder, address=redis, roots=roots):
            note(f"{path}: made")
    if folder.stat().st_mode & 0o077:
        note(f"{folder}: other users of this machine can read the keys in it: chmod 700 {folder}")
