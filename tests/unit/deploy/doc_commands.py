"""Writes down what every command takes, as its help says it (docs/commands.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import typer

from services.cli.app import make_app
from services.cli.options import (
    ConfigOption,
    JsonOption,
    MeshOption,
    MonitorOption,
    RouterOption,
    TrainerOption,
)

_SHARED = (RouterOption, MonitorOption, TrainerOption, ConfigOption, MeshOption, JsonOption)
"""Options that many commands have; they stand in one table."""


def commands_text() -> str:
    """Returns the sections of all commands, in the order of the help."""
    root = typer.main.get_command(make_app())
    # Until a command is made of it, typer keeps the first name where a default would be.
    shared = {get_args(each)[1].help: str(get_args(each)[1].default) for each in _SHARED}
    rows = [f"| `{name}` | {text} |" for text, name in shared.items()]
    found = [
        _section("Before every command", root, {}),
        "\n".join(["## Of many commands", "", *_HEAD, *rows]),
    ]
    found += [_section(name, command, shared) for name, command in _leaves(root, "tiercel")]
    return "\n\n".join(found)


_HEAD = ("| option | meaning |", "|---|---|")
_TYPE = re.compile(r"<(?:list\[)?(\w+)(?: range)?\]?>")
"""What a value is; the limits stand in the text, and so does that an option may be repeated."""


def _leaves(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields the commands below a group that do something, with their names."""
    context = typer.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from _leaves(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _section(title: str, command: Any, shared: dict[str, str]) -> str:
    """Returns a command's section: what it does, what it takes."""
    context = typer.Context(command, info_name=title)
    lines = [f"## {title}", "", *(line.strip() for line in (command.help or "").splitlines()), ""]
    own, others = [], []
    for parameter in command.params:
        if parameter.help in shared:
            others.append(f"`{shared[parameter.help]}`")
        elif record := parameter.get_help_record(context):
            name, text = (" ".join(part.split()).replace("|", "\\|") for part in record)
            own.append(f"| `{_TYPE.sub(_kind, name)}` | {text} |")
    if own:
        lines += [*_HEAD, *own, ""]
    if others:
        lines.append(f"Also {', '.join(others)}.")
    return "\n".join(lines).rstrip()


def _kind(found: re.Match[str]) -> str:
    return f"<{found[1].lower()}>"
