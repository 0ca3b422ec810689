"""``tiercel explain``: why a request went where it went."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli.options import ConfigOption, JsonOption, MeshOption, RouterOption
from services.cli.output import console, print_json, table
from services.common.times import seconds_of
from services.local.calls import call
from services.local.errors import CommandError, InputError
from services.local.target import resolve
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("explain")(explain)


def explain(
    request_id: Annotated[str, typer.Argument(help="Id of the request.")],
    mesh: MeshOption = "",
    config: ConfigOption = None,
    router: RouterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the numbers of a decision: every candidate's score, prediction and load.

    Routers keep their last decisions, some thousands each.
    """
    addresses = resolve(mesh, router, config=config).routers
    if not addresses:
        raise CommandError("no router to ask; is the mesh up? (tiercel up)")
    found = facts(_ask(addresses, pb.ExplainDecisionRequest(request_id=request_id)))
    if as_json:
        print_json(found)
    else:
        _show(found)


def _ask(addresses: list[str] | tuple[str, ...], request: pb.ExplainDecisionRequest) -> Any:
    """Returns the answer of the first router that knows; raises what the last one said."""
    for address in addresses[:-1]:
        try:
            return call("router", address, "ExplainDecision", request)
        except (CommandError, InputError):
            continue
    return call("router", addresses[-1], "ExplainDecision", request)


def facts(reply: pb.ExplainDecisionResponse) -> dict[str, Any]:
    """Returns an explanation as JSON values."""
    chosen = reply.candidates[reply.action]
    found: dict[str, Any] = {
        "request_id": reply.request_id,
        "decide_time": reply.decide_time.ToJsonString(),
        "task": reply.task,
        "policy": reply.policy,
        "policy_version": reply.policy_version,
        "fallback_reason": reply.fallback_reason,
        "choice": f"{chosen.candidate.tier}@{chosen.candidate.endpoint}",
        "behavior_probability": reply.behavior_probability,
        "explored": reply.explored,
        "slack_s": seconds_of(reply.slack),
        "prompt_tokens": reply.prompt_token_count,
        "predicted_output_tokens": reply.predicted_output_token_count,
        "arrival_rate_rps": reply.arrival_rate_rps,
        "state_age_s": seconds_of(reply.state_age),
        "candidates": [
            {
                "tier": each.candidate.tier,
                "endpoint": each.candidate.endpoint,
                "allowed": each.allowed,
                "score": each.score if each.HasField("score") else None,
                "predicted_latency_s": seconds_of(each.predicted_latency),
                "on_time_probability": each.on_time_probability,
                "in_flight": each.in_flight_count,
                "features": dict(zip(reply.feature_names, each.features, strict=True)),
            }
            for each in reply.candidates
        ],
    }
    return found


def _show(found: dict[str, Any]) -> None:
    rows = [
        (
            f"{each['tier']}@{each['endpoint']}",
            "-" if each["score"] is None else f"{each['score']:.4f}",
            f"{each['predicted_latency_s']:.3f}",
            f"{each['on_time_probability']:.3f}",
            each["in_flight"],
        )
        for each in sorted(
            found["candidates"],
            key=lambda each: (each["score"] is None, -(each["score"] or 0.0)),
        )
    ]
    why = f", {found['policy']} as fallback: {found['fallback_reason']}"
    title = (
        f"{found['choice']} by {found['policy_version']}, {found['slack_s']:.3f} s to its deadline"
        f"{why if found['fallback_reason'] else ''}{', explored' if found['explored'] else ''}"
    )
    columns = ("candidate", "score", "predicted s", "P(on time)", "in flight")
    console().print(table(title, columns, rows))
