"""``tiercel explain``: why a request went where it went."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from router.pressure import FLOOR
from services.cli.options import ConfigOption, JsonOption, MeshOption, RouterOption
from services.cli.output import console, print_json, table
from services.common import priorities
from services.common.enum_names import name_of
from services.common.times import seconds_of
from services.local.calls import call
from services.local.errors import CommandError, InputError
from services.local.target import resolve
from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb

_NEUTRAL = 0.005
"""A factor this near to 1 is told as 1."""


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
    """Say why a request went where it went, and what a larger tier would have taken.

    Routers keep their last decisions, some thousands each.
    """
    addresses = resolve(mesh, router, config=config).routers
    if not addresses:
        raise CommandError("no router to ask: give --router")
    found = facts(_ask(addresses, pb.ExplainDecisionRequest(request_id=request_id)))
    if as_json:
        print_json(found)
    else:
        _show(found)


def _ask(addresses: list[str] | tuple[str, ...], request: pb.ExplainDecisionRequest) -> Any:
    """Returns the answer of the first router that knows.

    Raises:
        CommandError: One of them could not be asked, and no other knows: it may be the one.
        InputError: All were asked.
    """
    failures: list[CommandError] = []
    for address in addresses:
        try:
            return call("router", address, "ExplainDecision", request)
        except CommandError as error:
            failures.append(error)
    raise next((each for each in failures if not isinstance(each, InputError)), failures[0])


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
        "target": reply.target,
        "target_pressure": reply.target_pressure,
        "smallest_tier_only": reply.smallest_tier_only,
        "policy_has_price": reply.policy_has_price,
        "conversation_stay": _stay_name(reply.conversation_stay),
        "conversation_seat": (
            _candidate_name(reply.candidates[reply.conversation_seat].candidate)
            if reply.HasField("conversation_seat")
            else ""
        ),
        "conversation_margin": reply.conversation_margin,
        "priority": _priority_facts(reply) if reply.HasField("priority") else None,
        "larger_tier_slack_s": (
            seconds_of(reply.larger_tier_slack) if reply.HasField("larger_tier_slack") else None
        ),
        "larger_tier_if_idle": reply.larger_tier_if_idle,
        "candidates": [
            {
                "tier": each.candidate.tier,
                "endpoint": each.candidate.endpoint,
                "quality": each.quality,
                "allowed": each.allowed,
                "away": each.away,
                "score": each.score if each.HasField("score") else None,
                "predicted_latency_s": seconds_of(each.predicted_latency),
                "on_time_probability": each.on_time_probability,
                "in_flight": each.in_flight_count,
                "cached_prompt_tokens": each.cached_prompt_token_count,
                "features": dict(zip(reply.feature_names, each.features, strict=True)),
            }
            for each in reply.candidates
        ],
    }
    return found


def _candidate_name(candidate: common_pb2.Candidate) -> str:
    return f"{candidate.tier}@{candidate.endpoint}"


def _stay_name(stay: common_pb2.ConversationStay.ValueType) -> str:
    """Returns what became of a conversation as one word; empty if there was none."""
    return name_of(common_pb2.ConversationStay, stay) if stay else ""


def _priority_facts(reply: pb.ExplainDecisionResponse) -> dict[str, Any]:
    told = reply.priority
    return {
        "class": priorities.label_of(told.priority),
        "asked": priorities.label_of(told.asked),
        "price_factor": told.price_factor,
        "admission_factor": told.admission_factor,
        "owed": told.owed,
    }


def _show(found: dict[str, Any]) -> None:
    out = console()
    for line in words(found):
        out.print(line, markup=False, soft_wrap=True)
    rows = [
        (
            _name(each),
            f"{each['quality']:.3f}",
            f"{each['predicted_latency_s']:.3f}",
            f"{each['on_time_probability']:.3f}",
            each["in_flight"],
            _score(each),
        )
        for each in sorted(
            found["candidates"], key=lambda each: (each["score"] is None, -(each["score"] or 0.0))
        )
    ]
    columns = ("candidate", "quality", "predicted s", "P(on time)", "in flight", "score")
    out.print(table("candidates, best score first", columns, rows))


def words(found: dict[str, Any]) -> list[str]:
    """Says a decision in sentences: what was chosen, why, and what a larger tier would have taken.

    Args:
        found: What `facts` returns.
    """
    chosen = next(each for each in found["candidates"] if _name(each) == found["choice"])
    scored = [e for e in found["candidates"] if e["score"] is not None]
    policy = " ".join(filter(None, (found["policy"], found["policy_version"])))
    why = f"{policy} gave it the highest score of {len(scored)} candidates."
    if found["explored"]:
        why = f"Exploration drew it, with probability {found['behavior_probability']:.3g}"
        best = max(scored, key=lambda each: each["score"], default=chosen)
        why += "." if best is chosen else f"; {policy} gave {_name(best)} the highest score."
    elif found["conversation_stay"] == "kept":
        why = f"Its conversation stayed there ({policy} decided)."
    elif chosen["score"] is not None and any(chosen["score"] < e["score"] for e in scored):
        why = f"{policy} drew it, with probability {found['behavior_probability']:.3g}."
    if found["fallback_reason"]:
        why += f" It decided as the fallback: {found['fallback_reason']}."
    request = (
        f"Request {found['request_id']} ({found['task']}, {found['prompt_tokens']} prompt tokens, "
        f"about {found['predicted_output_tokens']} to write) had {found['slack_s']:.3f} s left and "
        f"went to {found['choice']}."
    )
    why += (
        f" Predicted: {chosen['predicted_latency_s']:.3f} s, in time with probability "
        f"{chosen['on_time_probability']:.2f}."
    )
    conversation = [_conversation(found, chosen)] if found["conversation_stay"] else []
    said = [request, why, *conversation, _target(found), _priority(found), _larger(found, chosen)]
    return [each for each in said if each]


def _conversation(found: dict[str, Any], chosen: dict[str, Any]) -> str:
    """Says what became of the request's conversation."""
    seat, margin = found["conversation_seat"], found["conversation_margin"]
    text = {
        "new": "Where its conversation was served before was not known.",
        "kept": f"{seat} had served its conversation last, and to stay cost no more than a "
        f"margin of {margin:g}.",
        "closed": "Its conversation moved: who had served it last was gone, or not open to it.",
        "deadline": f"Its conversation moved: {seat} was not expected in time.",
        "target": f"Its conversation moved from {seat} for the sake of the target.",
        "worth": f"Its conversation moved: the choice was worth more than {seat} by more than a "
        f"margin of {margin:g}.",
    }[found["conversation_stay"]]
    cached = chosen["cached_prompt_tokens"]
    return f"{text} Some {cached} prompt tokens were taken for cached." if cached else text


def _target(found: dict[str, Any]) -> str:
    """Says what the task's target was and what it took."""
    if not found["target"]:
        return "No target was held for it."
    text = f"The task's target was to answer {found['target']:g} of the requests in time"
    if not found["policy_has_price"]:
        return f"{text}; {found['policy']} puts no price on device time, so it does not heed it."
    pressure = found["target_pressure"]
    if found["smallest_tier_only"] and pressure >= FLOOR:
        return f"{text}; so much was being missed that only the smallest tier was taken."
    if found["smallest_tier_only"]:
        return f"{text}; the router had just begun and took the smallest tier only."
    if pressure > 0.0:
        factor = math.exp(pressure)
        return (
            f"{text}; deadlines were being missed, and device time cost {factor:.1f} times as much."
        )
    return f"{text}, and nothing was being missed: it changed nothing."


def _priority(found: dict[str, Any]) -> str:
    """Says what the request's priority class did; nothing where it did nothing."""
    told = found["priority"]
    if told is None or (told["class"] == told["asked"] and _is_neutral(told)):
        return ""
    text = f"Its priority was {told['class']}"
    if told["class"] != told["asked"]:
        text += f" (it asked for {told['asked']}, more than its client may have)"
    if found["policy_has_price"]:
        text += f": device time cost it {told['price_factor']:.2f} times as much"
    else:
        text += f"; {found['policy']} puts no price on device time, so it did not heed that"
    text += f", and admission counted predictions {told['admission_factor']:.2f} times for it"
    if told["owed"]:
        text += ", since too few of its class had been admitted"
    return f"{text}."


def _is_neutral(told: dict[str, Any]) -> bool:
    factors = (told["price_factor"], told["admission_factor"])
    return all(abs(factor - 1.0) < _NEUTRAL for factor in factors)


def _larger(found: dict[str, Any], chosen: dict[str, Any]) -> str:
    larger = [e for e in found["candidates"] if e["quality"] > chosen["quality"]]
    if not larger:
        return "There is no larger tier."
    allowed = [each for each in larger if each["allowed"]]
    if not allowed and any(each["away"] for each in larger):
        return "Larger tiers were left to other routers, whose devices they are on."
    if not allowed:
        return "No larger tier was allowed: not usable, or not what the request asked for."
    best = min(allowed, key=lambda each: each["predicted_latency_s"])
    short_s = best["predicted_latency_s"] - found["slack_s"]
    if short_s > 0:
        text = f"{_name(best)} would have been {short_s:.3f} s late, as predicted."
    elif best["score"] is not None and chosen["score"] is not None:
        text = f"{_name(best)} was predicted in time with probability "
        text += f"{best['on_time_probability']:.2f}, and its score was lower by "
        text += f"{chosen['score'] - best['score']:.4f}."
    else:
        text = f"{_name(best)} was predicted in time, but was not looked at."
    needed_s = found["larger_tier_slack_s"]
    if needed_s is None:
        text += " No longer deadline would have brought a larger tier on that load"
    else:
        text += f" With {needed_s:.3f} s left a larger tier would have been chosen on that load"
    idle = "one would have been chosen" if found["larger_tier_if_idle"] else "none would have been"
    return f"{text}; with nothing under way, and no more time, {idle}."


def _name(candidate: dict[str, Any]) -> str:
    return f"{candidate['tier']}@{candidate['endpoint']}"


def _score(candidate: dict[str, Any]) -> str:
    if candidate["score"] is not None:
        return f"{candidate['score']:.4f}"
    if candidate["away"]:
        return "left to other routers"
    return "not on the shortlist" if candidate["allowed"] else "not allowed"
