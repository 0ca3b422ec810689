"""``tiercel keys``: API keys of clients, in the file that routers read."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Annotated

import typer

from services.cli.options import JsonOption
from services.cli.output import console, note, print_json, table
from services.common.access.keys import Key, KeyFileError, changing, new_key, read_keys, write_keys
from services.common.access.roles import GRANTED, Role
from services.common.checks import is_name
from services.common.files import open_folder
from services.local.errors import CommandError, InputError

FileArgument = Annotated[pathlib.Path, typer.Argument(help="File of keys, as the routers read it.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    commands = typer.Typer(
        name="keys", help="Add, list and revoke API keys of clients.", no_args_is_help=True
    )
    commands.command("add")(add)
    commands.command("list")(list_keys)
    commands.command("revoke")(revoke)
    app.add_typer(commands)


def add(
    file: FileArgument,
    client: Annotated[str, typer.Argument(help="Name of the client, characters of [a-z0-9_-].")],
    role: Annotated[
        list[str] | None, typer.Option(help="What it may do; once per role [default: data].")
    ] = None,
) -> None:
    """Make a key and print it; it is kept nowhere but as a hash. A client may have several."""
    if not is_name(client):
        text = "must be a name of 1 to 64 characters of [a-z0-9_-]"
        raise InputError(f"CLIENT: {text}, got {client!r}")
    roles = [str(Role.DATA)] if role is None else role
    for each in roles:
        if each not in list(GRANTED):
            raise InputError(f"--role: must be one of {', '.join(GRANTED)}, got {each!r}")
    key, text = new_key(client, [Role(each) for each in roles])
    with _changing(file, makes_folder=True):
        write_keys(file, (*_read(file, may_miss=True), key))
    note(f"key {key.id} of {client} may: {', '.join(roles)}. Give the client this line:")
    print(text)


def list_keys(file: FileArgument, as_json: JsonOption = False) -> None:
    """List the keys: whose they are and what they may do."""
    keys = _read(file)
    if as_json:
        shown = [dataclasses.asdict(key) for key in keys]
        print_json([{name: row[name] for name in row if name != "sha256"} for row in shown])
        return
    rows = [(key.id, key.client, ", ".join(key.roles), key.created) for key in keys]
    console().print(table("keys", ("key", "client", "roles", "created"), rows, numeric_from=9))


def revoke(
    file: FileArgument,
    name: Annotated[str, typer.Argument(help="Id of a key, or a client's name for all of its.")],
) -> None:
    """Take keys out; routers refuse them within seconds."""
    with _changing(file):
        keys = _read(file)
        kept = [key for key in keys if name not in (key.id, key.client)]
        if len(kept) == len(keys):
            raise InputError(f"{file}: holds no key and no client {name!r}")
        write_keys(file, kept)
    note(f"revoked {len(keys) - len(kept)} of {len(keys)} keys")


def _read(file: pathlib.Path, *, may_miss: bool = False) -> tuple[Key, ...]:
    try:
        if may_miss and not (file.exists() and file.stat().st_size):
            return ()
        return read_keys(file)
    except KeyFileError as error:
        raise InputError(str(error)) from None


@contextlib.contextmanager
def _changing(file: pathlib.Path, *, makes_folder: bool = False) -> Iterator[None]:
    """Lets nobody else change the file, and says in one line what kept it from being written."""
    try:
        if makes_folder and not file.parent.is_dir():
            open_folder(file.parent)  # it is mounted, and holds nothing secret
        with changing(file):
            yield
    except KeyFileError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{file}: cannot be written: {error.strerror or error}") from None
