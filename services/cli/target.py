"""``tiercel target``: the share of a task's deadlines that is to be met, changed while it runs."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.text import Text

from services.cli.options import ConfigOption, JsonOption, MeshOption, MonitorOption
from services.cli.output import console, note, print_json, table
from services.cli.spans import span_s
from services.common.mesh_settings import MOST_TARGET
from services.common.task_targets import (
    in_force_text,
    moment_text,
    target_facts,
    target_text,
    task_targets,
)
from services.common.times import duration_of
from services.local.calls import call
from services.local.errors import InputError
from services.local.target import resolve
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb

TAKEN_S = 3.0
"""How long a command waits for routers to hold what was set."""
_STEP_S = 0.2
_LONGEST_S = 30 * 86400.0

TaskArgument = Annotated[str, typer.Argument(help="Name of the task.")]
ReasonOption = Annotated[str, typer.Option(help="Why; shown beside the target.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    commands = typer.Typer(
        name="target",
        help="Show and set the share of each task's deadlines that is to be met.",
        no_args_is_help=True,
    )
    commands.command("show")(show)
    commands.command("set")(set_target)
    commands.command("unset")(unset)
    app.add_typer(commands)


def show(
    mesh: MeshOption = "",
    config: ConfigOption = None,
    monitor: MonitorOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show each task's target beside what was attained over about the last minute."""
    address = resolve(mesh, load_monitor=monitor, config=config).need("load_monitor")
    found = [target_facts(each) for each in task_targets(_state(address))]
    if as_json:
        print_json(found)
    else:
        console().print(target_table(found))


def set_target(
    task: TaskArgument,
    value: Annotated[
        str, typer.Argument(help="Share of hard deadlines to be met, 0.99 or 99%; 0 means none.")
    ],
    span: Annotated[
        str, typer.Option("--for", help="For so long only, e.g. 10m, 2h, 1d [default: for good].")
    ] = "",
    reason: ReasonOption = "",
    mesh: MeshOption = "",
    config: ConfigOption = None,
    monitor: MonitorOption = "",
) -> None:
    """Set a task's target in the whole mesh; the settings stay as they are.

    Every router holds it within a second or so, and goes on when the load monitor is away.
    """
    request = pb.SetTargetRequest(task=task, target=_share(value), reason=reason)
    if span:
        request.duration.CopyFrom(duration_of(span_s(span, "--for", _LONGEST_S)))
    address = resolve(mesh, load_monitor=monitor, config=config).need("load_monitor")
    reply = call("load monitor", address, "SetTarget", request)
    until = f" until {moment_text(reply.override.expire_time)}" if span else ""
    _tell(address, task, f"target of {task} set to {target_text(reply.override.target)}{until}")


def unset(
    task: TaskArgument,
    reason: ReasonOption = "",
    mesh: MeshOption = "",
    config: ConfigOption = None,
    monitor: MonitorOption = "",
) -> None:
    """Give a task's target back to the settings."""
    address = resolve(mesh, load_monitor=monitor, config=config).need("load_monitor")
    request = pb.SetTargetRequest(task=task, reason=reason)
    call("load monitor", address, "SetTarget", request)
    _tell(address, task, f"target of {task} is that of the settings again")


def target_table(found: list[dict[str, Any]]) -> Any:
    """Table of targets; what was set while the mesh runs stands below it."""
    rows = [
        (
            each["task"],
            in_force_text({row["target"]: row["routers"] for row in each["in_force"]}),
            target_text(each["settings_target"]),
            "-" if each["attained"] is None else f"{each['attained']:.4f}",
            each["on_time_count"] + each["missed_count"],
            each["set_by"] or "settings",
        )
        for each in found
    ]
    columns = ("task", "target", "in settings", "attained, 1 min", "of requests", "set by")
    made = table("targets: share of deadlines to be met", columns, rows)
    # No markup: a reason may be anything.
    origins = [_origin(each) for each in found if each["set_time"]]
    made.caption, made.caption_justify = Text("\n".join(origins)) if origins else None, "left"
    return made


def _origin(each: dict[str, Any]) -> str:
    text = f"{each['task']}: {target_text(each['target'])} by {each['set_by']}"
    text += f" at {each['set_time']}"
    if each["expire_time"]:
        text += f" until {each['expire_time']}"
    return text + (f": {each['reason']}" if each["reason"] else "")


def _tell(address: str, task: str, text: str) -> None:
    """Says what was done, and how many routers hold it by now."""
    deadline_s = time.monotonic() + TAKEN_S
    while True:
        found = next((e for e in task_targets(_state(address)) if e.task == task), None)
        count = sum(found.targets.values()) if found else 0
        holding = found.targets.get(found.wanted, 0) if found and found.wanted is not None else 0
        if (count and holding == count) or time.monotonic() >= deadline_s:
            break
        time.sleep(_STEP_S)
    if not count:
        note(f"{text}; no router reports at present")
    else:
        note(f"{text}; {holding} of {count} routers hold it")


def _state(address: str) -> state_pb.SystemState:
    reply = call("load monitor", address, "GetSystemState", pb.GetSystemStateRequest())
    state: state_pb.SystemState = reply.state
    return state


def _share(text: str) -> float:
    """Returns a share given as a fraction or a percentage."""
    is_percentage = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        raise InputError(f"VALUE: expected a share such as 0.99 or 99%, got {text!r}") from None
    if is_percentage:
        value = round(value / 100.0, 9)
    if not 0.0 <= value <= MOST_TARGET:
        raise InputError(f"VALUE: must be 0 to {MOST_TARGET} (99.99%), got {text}")
    return value
