"""``tiercel trace``: what happened to one request, as a tree of spans."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from services.cli.options import ConfigOption, JsonOption, MeshOption
from services.cli.output import console, print_json
from services.common.settings import SettingsError, load_settings
from services.common.span_file import read_spans
from services.local.errors import CommandError, InputError
from services.local.target import resolve
from services.router_inference.settings import Settings


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("trace")(trace)


def trace(
    name: Annotated[str, typer.Argument(metavar="ID", help="Id of the trace, or of a request.")],
    folder: Annotated[
        pathlib.Path | None,
        typer.Option(help="Where spans are [default: router_inference.trace_folder of the mesh]."),
    ] = None,
    mesh: MeshOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the spans of a request as a tree, where a router writes them to a folder.

    `tiercel generate` names its trace, and is always traced; of other requests every bad one and
    a share are (`router_inference.sample_ratio`).
    """
    folder = folder or _folder(resolve(mesh, config=config).config)
    if not folder.is_dir():
        raise CommandError(f"no folder {folder}: no router has written spans to it")
    spans = read_spans(folder, name)
    if not spans:
        raise CommandError(f"no span of {name} in {folder}; not sampled, or too long ago")
    if as_json:
        print_json(spans)
        return
    for root in _trees(spans):
        console().print(root)


def _folder(config: str) -> pathlib.Path:
    """Returns the folder that the mesh's settings name."""
    if not config:
        raise InputError("--folder: give the folder of spans, or --config")
    try:
        settings = load_settings(Settings, path=pathlib.Path(config), environ=os.environ)
    except SettingsError as error:
        raise InputError("; ".join(error.problems)) from None
    found = settings.router_inference.trace_folder
    if not found:
        raise InputError(f"{config}: set router_inference.trace_folder to keep spans")
    return pathlib.Path(found)


def _trees(spans: list[dict[str, Any]]) -> list[Tree]:
    """Returns one tree for each span whose parent is not there, in order of time."""
    spans = sorted(spans, key=lambda span: (span["start_ns"], -span["end_ns"]))
    first_ns = spans[0]["start_ns"]
    nodes = {span["span_id"]: Tree(_line(span, first_ns)) for span in spans}
    roots = []
    for span in spans:
        parent = nodes.get(span["parent_span_id"])
        if parent is None:
            roots.append(nodes[span["span_id"]])
        else:
            parent.children.append(nodes[span["span_id"]])
    roots[0].label = Text(f"trace {spans[0]['trace_id']}\n").append(roots[0].label)  # type: ignore[arg-type]
    return roots


def _line(span: Mapping[str, Any], first_ns: int) -> Text:
    """One span: its name, when it began, how long it took, and what is known about it."""
    line = Text(span["name"], style="bold")
    start_ms = (span["start_ns"] - first_ns) / 1e6
    took_ms = (span["end_ns"] - span["start_ns"]) / 1e6
    line.append(f"  {span['service']}  +{start_ms:.1f} ms  {took_ms:.1f} ms", style="not bold")
    if span["error"]:
        line.append(f"  error: {span['error']}", style="not bold reverse")
    facts = [
        f"{key.removeprefix('tiercel.')}={_shown(value)}"
        for key, value in span["attributes"].items()
        if not isinstance(value, list)
    ]
    facts += [
        f"{event['name']} at +{(event['time_ns'] - first_ns) / 1e6:.1f} ms"
        for event in span["events"]
    ]
    if facts:
        line.append("\n" + "  ".join(facts), style="not bold dim")
    return line


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
