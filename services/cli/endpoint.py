"""``tiercel endpoint``: endpoints that join and leave while the mesh runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from router.fleet import EndpointProtocol
from services.cli.options import ConfigOption, JsonOption, MeshOption, MonitorOption
from services.cli.output import console, note, print_json, table
from services.common.addresses import parse_address
from services.common.enum_names import name_of
from services.common.times import duration_of
from services.local.calls import call
from services.local.errors import InputError
from services.local.target import resolve
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb
from tiercel.load_monitor.v1 import system_state_pb2


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    commands = typer.Typer(
        name="endpoint", help="List, add and remove endpoints.", no_args_is_help=True
    )
    commands.command("list")(list_endpoints)
    commands.command("add")(add)
    commands.command("remove")(remove)
    app.add_typer(commands)


def list_endpoints(
    mesh: MeshOption = "",
    config: ConfigOption = None,
    monitor: MonitorOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the endpoints as the load monitor sees them."""
    address = resolve(mesh, load_monitor=monitor, config=config).need("load_monitor")
    reply = call("load monitor", address, "GetSystemState", pb.GetSystemStateRequest())
    found = [endpoint_facts(each) for each in reply.state.endpoints]
    if as_json:
        print_json(found)
        return
    console().print(endpoint_table(found))


def add(
    name: Annotated[str, typer.Argument(help="Unique name.")],
    address: Annotated[str, typer.Argument(help="Address of the server, host:port.")],
    tier: Annotated[
        list[str], typer.Option(help="Tier it serves, TIER or TIER=MODEL; once per tier.")
    ],
    device: Annotated[str, typer.Option(help="Device its tiers share [default: its name].")] = "",
    profile: Annotated[
        str,
        typer.Option(
            help="Name of its latency profile, one that the routers' settings know "
            "[default: the mesh's]."
        ),
    ] = "",
    metrics: Annotated[str, typer.Option(help="Address of its Prometheus metrics.")] = "",
    http: Annotated[str, typer.Option(help="Address of its HTTP, for gateways.")] = "",
    protocol: Annotated[str, typer.Option(help="What it speaks: triton, openai.")] = "triton",
    mesh: MeshOption = "",
    config: ConfigOption = None,
    monitor: MonitorOption = "",
) -> None:
    """Add an endpoint; it gets traffic once it is ready."""
    for option, text in (("ADDRESS", address), ("--metrics", metrics), ("--http", http)):
        if text or option == "ADDRESS":
            _check(option, text)
    known = [each.value for each in EndpointProtocol]
    if protocol not in known:
        raise InputError(f"--protocol: must be one of {', '.join(known)}, got {protocol!r}")
    tiers = [_served(each) for each in tier]
    endpoint = common_pb2.Endpoint(
        endpoint=name,
        address=address,
        device=device,
        tiers=tiers,
        profile=profile,
        metrics_address=metrics,
        http_address=http,
        protocol=common_pb2.EndpointProtocol.Value(f"ENDPOINT_PROTOCOL_{protocol.upper()}"),
    )
    where = resolve(mesh, load_monitor=monitor, config=config).need("load_monitor")
    call("load monitor", where, "AddEndpoint", pb.AddEndpointRequest(endpoint=endpoint))
    note(f"endpoint {name} added")


def remove(
    name: Annotated[str, typer.Argument(help="Name of the endpoint.")],
    drain: Annotated[float, typer.Option(help="Seconds it may finish what it has.")] = 10.0,
    mesh: MeshOption = "",
    config: ConfigOption = None,
    monitor: MonitorOption = "",
) -> None:
    """Take an endpoint out: it finishes what it has and gets nothing new."""
    if not 0 <= drain <= 3600:
        raise InputError(f"--drain: must be 0 to 3600 seconds, got {drain:g}")
    where = resolve(mesh, load_monitor=monitor, config=config).need("load_monitor")
    request = pb.RemoveEndpointRequest(endpoint=name, drain=duration_of(drain))
    call("load monitor", where, "RemoveEndpoint", request)
    note(f"endpoint {name} drains and leaves")


def endpoint_facts(state: system_state_pb2.EndpointState) -> dict[str, Any]:
    """What a table or JSON shows of an endpoint."""
    return {
        "endpoint": state.endpoint.endpoint,
        "address": state.endpoint.address,
        "device": state.endpoint.device or state.endpoint.endpoint,
        "health": name_of(common_pb2.EndpointHealth, state.health),
        "reason": state.reason,
        "ramp_weight": state.ramp_weight,
        "tiers": {
            gauge.tier: {"ready": gauge.ready, "queue_depth": gauge.queue_depth, "kind": gauge.kind}
            for gauge in state.gauges
        }
        or {each.tier: {} for each in state.endpoint.tiers},
    }


def endpoint_table(found: list[dict[str, Any]]) -> Any:
    """Table of endpoints."""
    rows = [
        (
            each["endpoint"],
            each["address"],
            each["device"],
            ", ".join(each["tiers"]),
            each["health"] + (f": {each['reason']}" if each["reason"] else ""),
            f"{each['ramp_weight']:.2f}",
        )
        for each in found
    ]
    columns = ("endpoint", "address", "device", "tiers", "health", "weight")
    return table("endpoints", columns, rows, numeric_from=5)


def _served(text: str) -> common_pb2.ServedTier:
    tier, _, model = text.partition("=")
    if not tier:
        raise InputError(f"--tier: expected TIER or TIER=MODEL, got {text!r}")
    return common_pb2.ServedTier(tier=tier, model_name=model)


def _check(option: str, text: str) -> None:
    try:
        parse_address(text)
    except ValueError as error:
        raise InputError(f"{option}: {error}, got {text!r}") from None
