"""``tiercel status``: what every part of the mesh says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from services.cli.endpoint import endpoint_facts, endpoint_table
from services.cli.options import (
    ConfigOption,
    JsonOption,
    MeshOption,
    MonitorOption,
    RouterOption,
    TrainerOption,
)
from services.cli.output import console, print_json, share, table
from services.cli.profile_table import profile_table
from services.cli.target import target_table
from services.common.priorities import label_of
from services.common.profile_facts import profile_facts, profile_json
from services.common.task_targets import target_facts, task_targets
from services.common.times import seconds_of
from services.common.token_goodput import DUE, since_start, token_goodput_json
from services.local.calls import call
from services.local.errors import CommandError, InputError
from services.local.target import Target, resolve
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb

PARTS = {"router": "routers", "monitor": "load_monitor", "trainer": "trainer"}
"""What may be required, and where in the facts it stands."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("status")(status)


def status(
    mesh: MeshOption = "",
    config: ConfigOption = None,
    router: RouterOption = None,
    monitor: MonitorOption = "",
    trainer: TrainerOption = "",
    require: Annotated[
        str,
        typer.Option(help="Parts that must answer: router,monitor,trainer [default: those it has]"),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Show routers, endpoints, policies and what is degraded; exit code 1 if a part is gone."""
    required = _required(require)
    target = resolve(mesh, router, monitor, trainer, config=config)
    found = collect(target)
    if as_json:
        print_json(found)
    else:
        _show(found)
    gone = [part for part in required or PARTS if _is_gone(found, part, bool(required))]
    if gone:
        raise CommandError(f"no answer: {', '.join(gone)}")


def _required(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise InputError(f"--require: {unknown[0]!r} is none of {', '.join(PARTS)}")
    return parts


def _is_gone(found: dict[str, Any], part: str, is_required: bool) -> bool:
    """Says whether a part does not answer; of routers one is enough."""
    facts = found.get(PARTS[part])
    if not facts:
        return is_required
    return all("error" in each for each in (facts if part == "router" else [facts]))


def collect(target: Target) -> dict[str, Any]:
    """Asks every part once; a part that does not answer gives its error instead."""
    routers = [
        {"address": each, **_ask(lambda each=each: _router_facts(each))}  # type: ignore[misc]
        for each in target.routers
    ]
    found: dict[str, Any] = {"routers": routers}
    if target.load_monitor:
        found["load_monitor"] = _ask(lambda: _monitor_facts(target.load_monitor))
    if target.trainer:
        found["trainer"] = _ask(lambda: _trainer_facts(target.trainer))
    if target.manifest is not None:
        found["mesh"] = target.manifest.name
        found["kind"] = target.manifest.kind
        found["processes"] = dict(target.manifest.processes)
    return found


def _ask(question: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return question()
    except CommandError as error:
        return {"error": str(error)}


def _router_facts(address: str) -> dict[str, Any]:
    reply = call("router", address, "GetRouterStatus", router_pb.GetRouterStatusRequest())
    age_s = round(seconds_of(reply.state_age), 3) if reply.HasField("state_age") else None
    return {
        "router_id": reply.router_id,
        "policy": reply.policy,
        "policy_version": reply.policy_version,
        "fallback_active": reply.fallback_active,
        "degraded": list(reply.degraded_reasons),
        "state_age_s": age_s,
        "arrival_rate_rps": reply.arrival_rate_rps,
        "in_flight": reply.in_flight_count,
        "conversations": dict(sorted(reply.conversation_counts.items())),
        "candidates": [
            {
                "tier": each.candidate.tier,
                "endpoint": each.candidate.endpoint,
                "own_in_flight": each.own_in_flight_count,
                "other_in_flight": each.other_in_flight_count,
                "predicted_latency_s": round(seconds_of(each.predicted_latency), 4),
                "usable": each.usable,
                "reason": each.reason,
            }
            for each in reply.candidates
        ],
        "profiles": [profile_json(each) for each in profile_facts(reply.profiles)],
        "exploration": {
            "share": reply.exploration.share,
            "on_time": reply.exploration.least_on_time_probability,
            "decisions": dict(reply.exploration.decision_counts),
        },
        "experience": {
            "waiting": reply.experience.waiting_count,
            "oldest_s": round(seconds_of(reply.experience.oldest_age), 3),
            "dropped": dict(reply.experience.dropped_counts),
        },
        "priorities": [
            {
                "priority": label_of(each.priority),
                "on_time": each.on_time_count,
                "missed": each.missed_count,
                "refused": each.refused_count,
                "price_factor": round(each.price_factor, 4),
            }
            for each in reply.priorities
        ],
        "qualities": [
            {
                "task": each.task,
                "tier": each.tier,
                "quality": round(each.quality, 4),
                "settings_quality": round(each.settings_quality, 4),
                "error": round(each.error, 4),
                "reports": each.report_count,
            }
            for each in reply.tier_qualities
        ],
        "tokens": [
            token_goodput_json(found)
            for each in reply.token_outcomes
            for found in since_start(each.task, each.outcomes)
        ],
    }


def _monitor_facts(address: str) -> dict[str, Any]:
    request = monitor_pb.GetSystemStateRequest()
    state = call("load monitor", address, "GetSystemState", request).state
    return {
        "monitor_id": state.monitor_id,
        "version": state.version,
        "arrival_rate_rps": state.arrival_rate_short_rps,
        "routers": [each.router_id for each in state.routers],
        "endpoints": [endpoint_facts(each) for each in state.endpoints],
        "targets": [target_facts(each) for each in task_targets(state)],
    }


def _trainer_facts(address: str) -> dict[str, Any]:
    reply = call("trainer", address, "ListPolicies", trainer_pb.ListPoliciesRequest())
    active = [p for p in reply.policies if p.stage == trainer_pb.POLICY_STAGE_ACTIVE]
    return {
        "activation": reply.activation,
        "active": active[0].policy if active else "",
        "active_version": active[0].policy_version if active else "",
        "policies": [each.policy for each in reply.policies],
    }


def _show(found: dict[str, Any]) -> None:
    out = console()
    for each in found["routers"]:
        if "error" in each:
            out.print(f"router {each['address']}: {each['error']}")
            continue
        title = (
            f"router {each['router_id']} at {each['address']}: policy {each['policy']}"
            f" {each['policy_version']}, {each['arrival_rate_rps']:.1f} requests/s,"
            f" {each['in_flight']} in flight"
        )
        rows = [
            (
                row["tier"],
                row["endpoint"],
                f"{row['own_in_flight']} + {row['other_in_flight']}",
                f"{row['predicted_latency_s'] * 1e3:.0f}",
                "yes" if row["usable"] else row["reason"] or "no",
            )
            for row in each["candidates"]
        ]
        columns = ("tier", "endpoint", "own + others' in flight", "predicted ms", "usable")
        out.print(table(title, columns, rows, numeric_from=2))
        if each["profiles"]:
            out.print(profile_table(each["profiles"]))
        _show_priorities(each["priorities"])
        _show_tokens(each["tokens"])
        _show_qualities(each["qualities"])
        if each["conversations"]:
            counts = ", ".join(f"{count} {stay}" for stay, count in each["conversations"].items())
            out.print(f"  decisions of one process for conversations: {counts}")
        if each["fallback_active"]:
            out.print("  the fallback policy decides at present")
        for line in _learning_lines(each):
            out.print(line)
        if each["degraded"]:
            out.print(f"  degraded: {', '.join(each['degraded'])}")
    _show_rest(found)


def _learning_lines(router: dict[str, Any]) -> list[str]:
    """Says what a router explores, and what experience it lost; nothing where there is neither."""
    lines = []
    exploration = router["exploration"]
    if exploration["share"]:
        counts = exploration["decisions"]
        explored = counts.get("explored", 0)
        closed = ", ".join(
            f"{name} {n}" for name, n in sorted(counts.items()) if name != "explored"
        )
        lines.append(
            f"  explores {exploration['share']:.1%} of what is open to it: {explored} of"
            f" {sum(counts.values())} decisions" + (f" ({closed})" if closed else "")
        )
    experience = router["experience"]
    if experience["dropped"]:
        counts = experience["dropped"]
        why = ", ".join(f"{reason} {n}" for reason, n in sorted(counts.items()))
        lines.append(f"  experience records dropped: {sum(counts.values())} ({why})")
    return lines


def _show_priorities(facts: list[dict[str, Any]]) -> None:
    """Shows what became of each priority class; nothing where all requests were normal."""
    counted = ("on_time", "missed", "refused")
    if not any(each[name] for each in facts for name in counted if each["priority"] != "normal"):
        return
    rows = [
        (
            each["priority"],
            *(each[name] for name in counted),
            f"{each['price_factor']:.2f}",
        )
        for each in facts
    ]
    columns = ("priority", "on time", "missed", "refused", "device time costs")
    console().print(table("priorities since the start", columns, rows))


def _show_tokens(facts: list[dict[str, Any]]) -> None:
    """Shows how requests fared whose deadline is for tokens; nothing where there were none."""
    if not facts:
        return
    rows = [
        (
            each["task"],
            DUE[each["slo_kind"]],
            each["on_time_count"],
            each["missed_count"],
            share(each["attained"]),
            share(each["smooth_share"]),
        )
        for each in facts
    ]
    columns = ("task", "due", "on time", "missed", "in time", "smooth")
    title = "deadlines for tokens since the start"
    console().print(table(title, columns, rows, numeric_from=2))


def _show_qualities(facts: list[dict[str, Any]]) -> None:
    """Shows what was learned of the tiers' quality; nothing where nobody has reported any."""
    if not facts:
        return
    rows = [
        (
            each["task"],
            each["tier"],
            f"{each['quality']:.3f}",
            f"{each['settings_quality']:.3f}",
            f"{each['error']:.3f}",
            each["reports"],
        )
        for each in facts
    ]
    columns = ("task", "tier", "quality in use", "of the settings", "+-", "reports")
    title = "quality by the reports of clients, of the mesh"
    console().print(table(title, columns, rows, numeric_from=2))


def _show_rest(found: dict[str, Any]) -> None:
    out = console()
    monitor = found.get("load_monitor", {})
    if "error" in monitor:
        out.print(f"load monitor: {monitor['error']}")
    elif monitor:
        out.print(endpoint_table(monitor["endpoints"]))
        if monitor["targets"]:
            out.print(target_table(monitor["targets"]))
    trainer = found.get("trainer", {})
    if "error" in trainer:
        out.print(f"trainer: {trainer['error']}")
    elif trainer:
        active = f"{trainer['active']} {trainer['active_version']}".strip()
        active = active or "none yet (routers follow their settings)"
        out.print(f"trainer: active policy {active}, activation {trainer['activation']}")
    if found.get("processes"):
        rows = [(n, p["pid"], p["start_count"], p["log"]) for n, p in found["processes"].items()]
        out.print(table("processes", ("name", "pid", "starts", "log"), rows))
