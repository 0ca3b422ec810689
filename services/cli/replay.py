"""``tiercel replay``: what online learning holds, and dropping what should not be in it."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from services.cli.options import ConfigOption, JsonOption, MeshOption, TrainerOption
from services.cli.output import note, print_json
from services.cli.spans import moment_s
from services.common.times import timestamp_of, to_ns
from services.local.calls import call
from services.local.errors import InputError
from services.local.target import resolve
from tiercel.trainer.v1 import trainer_service_pb2 as pb

DROP_TIMEOUT_S = 120.0


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    commands = typer.Typer(
        name="replay", help="Change what online learning holds.", no_args_is_help=True
    )

    # A group of one command would be a plain command.
    @commands.callback()
    def root() -> None:
        """Change what online learning holds."""

    commands.command("drop")(drop)
    app.add_typer(commands)


def drop(
    since: Annotated[
        str, typer.Option(help="First moment to drop, for instance 2026-11-28T20:00Z.")
    ] = "",
    until: Annotated[str, typer.Option(help="First moment to keep again [default: now].")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Drop all of it.")] = False,
    mesh: MeshOption = "",
    config: ConfigOption = None,
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Drop a span of time from the replay; the network starts afresh on what is left."""
    if bool(since) == everything:
        raise InputError("--since, --all: give one of them")
    request = pb.DropReplayRequest()
    if since:
        request.since_time.CopyFrom(_moment("--since", since))
    if until:
        request.until_time.CopyFrom(_moment("--until", until))
    address = resolve(mesh, trainer=trainer, config=config).need("trainer")
    reply = call("trainer", address, "DropReplay", request, DROP_TIMEOUT_S)
    if as_json:
        print_json({"dropped_count": reply.dropped_count, "kept_count": reply.kept_count})
        return
    note(f"dropped {reply.dropped_count} transitions, {reply.kept_count} are left")


def _moment(option: str, text: str) -> Timestamp:
    return timestamp_of(to_ns(moment_s(text, option, time.time())))
