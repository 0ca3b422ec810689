"""``tiercel top``: the live view in a terminal."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.live import Live

from services.cli.options import ConfigOption, JsonOption, MeshOption, MonitorOption
from services.cli.output import console
from services.common.live import StateTracker, facts_json, tier_order
from services.local.calls import connected
from services.local.errors import CommandError
from services.local.live_view import render
from services.local.target import resolve
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb

REDRAW_S = 0.25
LONGEST_S = 7 * 24 * 3600.0


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("top")(top)


def top(
    seconds: Annotated[
        float, typer.Option(min=0, help="Stop after this long; 0 means by Ctrl-C.")
    ] = 0.0,
    mesh: MeshOption = "",
    config: ConfigOption = None,
    monitor: MonitorOption = "",
    as_json: JsonOption = False,
) -> None:
    """Watch what the mesh does now: rate, mix, every task beside target and deadline, queues."""
    target = resolve(mesh, load_monitor=monitor, config=config)
    address = target.need("load_monitor")
    title = f"mesh {target.manifest.name}" if target.manifest else f"mesh at {address}"
    limit_s = min(seconds, LONGEST_S) if seconds > 0 else LONGEST_S
    with connected("load monitor", address) as stub:
        try:
            stream = stub.WatchSystemState(pb.WatchSystemStateRequest(), timeout=limit_s)
            if as_json:
                _print_lines(stream)
            else:
                _draw(stream, title)
        except Exception as error:
            if _is_time_limit(error) and seconds > 0:
                return
            raise
    raise CommandError(f"the load monitor at {address} ended the stream")


def _is_time_limit(error: Exception) -> bool:
    code = getattr(error, "code", lambda: None)()
    return getattr(code, "name", "") == "DEADLINE_EXCEEDED"


def _draw(stream: Any, title: str) -> None:
    tracker, drawn_s = StateTracker(), 0.0
    with Live(console=console(), auto_refresh=False, screen=False) as view:
        for message in stream:
            facts = tracker.push(message.state)
            if time.monotonic() - drawn_s >= REDRAW_S:
                drawn_s = time.monotonic()
                view.update(render(facts, tier_order(message.state), title), refresh=True)


def _print_lines(stream: Any) -> None:
    tracker = StateTracker()
    for message in stream:
        print(json.dumps(facts_json(tracker.push(message.state))), flush=True)
