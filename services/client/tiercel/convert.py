"""Arguments become messages and messages become results, here and nowhere else."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from tiercel.arguments import check
from tiercel.common.v1 import common_pb2
from tiercel.results import Answer, Ticket
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb

SLO_KINDS = {
    "": common_pb2.SLO_KIND_UNSPECIFIED,
    "complete_answer": common_pb2.SLO_KIND_COMPLETE_ANSWER,
    "first_token": common_pb2.SLO_KIND_FIRST_TOKEN,
    "per_token": common_pb2.SLO_KIND_PER_TOKEN,
}
PRIORITIES = {
    "": common_pb2.PRIORITY_UNSPECIFIED,
    "high": common_pb2.PRIORITY_HIGH,
    "normal": common_pb2.PRIORITY_NORMAL,
    "low": common_pb2.PRIORITY_LOW,
}
_MAY_BE_UNSAID = ("first_token", "early", "queue", "prefill", "decode", "hop")
OUTCOME_STATUSES = {
    "on_time": common_pb2.OUTCOME_STATUS_ON_TIME,
    "late": common_pb2.OUTCOME_STATUS_LATE,
    "cancelled": common_pb2.OUTCOME_STATUS_CANCELLED,
    "failed": common_pb2.OUTCOME_STATUS_FAILED,
}


def duration(seconds: float) -> Duration:
    """Makes a protobuf duration."""
    message = Duration()
    message.FromNanoseconds(round(float(seconds) * 1e9))  # numpy's own floats stay such
    return message


def seconds(message: Duration) -> float:
    """Reads a protobuf duration as seconds."""
    return message.ToNanoseconds() / 1e9


def step_down_name(reason: int) -> str:
    """Short name of a step-down reason: ``policy``, ``rescue``, ...; empty for none."""
    if reason == common_pb2.STEP_DOWN_REASON_UNSPECIFIED:
        return ""
    try:
        name = common_pb2.StepDownReason.Name(reason)  # type: ignore[arg-type]
    except ValueError:
        return f"reason_{reason}"
    return name.removeprefix("STEP_DOWN_REASON_").lower()


def stay_name(stay: int) -> str:
    """Short name of what became of a conversation: ``kept``, ``new``, ...; empty for none."""
    if stay == common_pb2.CONVERSATION_STAY_UNSPECIFIED:
        return ""
    try:
        name = common_pb2.ConversationStay.Name(stay)  # type: ignore[arg-type]
    except ValueError:
        return f"stay_{stay}"
    return name.removeprefix("CONVERSATION_STAY_").lower()


def answer_of(completion: pb.Completion, text: str, trace_id: str) -> Answer:
    """Makes an Answer from a completion."""
    timings: Any = completion.timings
    told = {
        f"{name}_s": seconds(getattr(timings, name)) if timings.HasField(name) else None
        for name in _MAY_BE_UNSAID
    }
    return Answer(
        text=text,
        request_id=completion.request_id,
        tier=completion.tier,
        endpoint=completion.endpoint,
        policy=completion.policy,
        policy_version=completion.policy_version,
        on_time=completion.on_time,
        quality=completion.quality,
        output_token_count=completion.output_token_count,
        dispatch_s=seconds(timings.dispatch),
        total_s=seconds(timings.total),
        step_down=step_down_name(completion.step_down_reason),
        finish_reason=completion.finish_reason,
        rescued=completion.rescued,
        retry_count=completion.retry_count,
        conversation_stay=stay_name(completion.conversation_stay),
        cached_prompt_token_count=completion.cached_prompt_token_count,
        trace_id=trace_id,
        **told,
    )


def ticket_of(response: pb.RouteResponse) -> Ticket:
    """Makes a Ticket from a routing decision."""
    predicted = (
        seconds(response.predicted_latency) if response.HasField("predicted_latency") else None
    )
    return Ticket(
        ticket=response.ticket,
        request_id=response.request_id,
        tier=response.tier,
        endpoint=response.endpoint,
        address=response.address,
        model_name=response.model_name,
        lease_expire_unix_s=response.lease_expire_time.ToNanoseconds() / 1e9,
        predicted_latency_s=predicted,
        quality=response.quality,
        policy=response.policy,
        policy_version=response.policy_version,
    )


def generation_spec(
    prompt: str,
    *,
    task: str,
    deadline_s: float | None = None,
    max_output_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    slo_kind: str = "",
    token_interval_s: float | None = None,
    quality_floor: float = 0.0,
    tier: str = "",
    request_id: str = "",
    conversation_id: str = "",
    priority: str = "",
) -> pb.GenerationSpec:
    """Makes the message both Generate calls share; the router checks the values.

    Raises:
        TypeError: An argument is of a wrong type.
        ValueError: ``slo_kind`` is neither empty, ``complete_answer``, ``first_token`` nor
            ``per_token``, or ``priority`` is no class.
    """
    check(
        prompt=prompt, task=task, deadline_s=deadline_s, max_output_tokens=max_output_tokens,
        temperature=temperature, seed=seed, slo_kind=slo_kind, quality_floor=quality_floor,
        tier=tier, request_id=request_id, conversation_id=conversation_id, priority=priority,
        token_interval_s=token_interval_s,
    )  # fmt: skip
    if slo_kind not in SLO_KINDS:
        known = "complete_answer, first_token or per_token"
        raise ValueError(f"slo_kind: must be {known}, got {slo_kind!r}")
    spec = pb.GenerationSpec(
        prompt=prompt,
        task=task,
        slo_kind=SLO_KINDS[slo_kind],
        quality_floor=quality_floor,
        tier=tier,
        request_id=request_id,
        conversation_id=conversation_id,
        priority=_priority(priority),
    )
    if max_output_tokens is not None:
        spec.max_output_tokens = max_output_tokens
    if deadline_s is not None:
        spec.deadline.CopyFrom(duration(deadline_s))
    if token_interval_s is not None:
        spec.token_interval.CopyFrom(duration(token_interval_s))
    if temperature or seed is not None:
        spec.sampling.temperature = temperature
        if seed is not None:
            spec.sampling.seed = seed
    return spec


def route_request(
    task: str,
    prompt_token_count: int,
    *,
    deadline_s: float | None = None,
    max_output_tokens: int | None = None,
    quality_floor: float = 0.0,
    tier: str = "",
    request_id: str = "",
    conversation_id: str = "",
    priority: str = "",
) -> pb.RouteRequest:
    """Makes the request for a decision; the router checks the values.

    Raises:
        TypeError: An argument is of a wrong type.
        ValueError: ``priority`` is no class.
    """
    check(
        task=task, prompt_token_count=prompt_token_count, deadline_s=deadline_s,
        max_output_tokens=max_output_tokens, quality_floor=quality_floor, tier=tier,
        request_id=request_id, conversation_id=conversation_id, priority=priority,
    )  # fmt: skip
    request = pb.RouteRequest(
        task=task,
        prompt_token_count=prompt_token_count,
        quality_floor=quality_floor,
        tier=tier,
        request_id=request_id,
        conversation_id=conversation_id,
        priority=_priority(priority),
    )
    if deadline_s is not None:
        request.deadline.CopyFrom(duration(deadline_s))
    if max_output_tokens is not None:
        request.max_output_tokens = max_output_tokens
    return request


def _priority(name: str) -> common_pb2.Priority.ValueType:
    if name not in PRIORITIES:
        raise ValueError(f"priority: must be high, normal or low, got {name!r}")
    return PRIORITIES[name]


def outcome_request(
    *,
    ticket: bytes | None = None,
    request_id: str | None = None,
    status: str = "",
    latency_s: float | None = None,
    output_token_count: int = 0,
    quality: float | None = None,
) -> pb.ReportOutcomeRequest:
    """Makes the report of an outcome.

    Raises:
        TypeError: An argument is of a wrong type.
        ValueError: Neither or both of ticket and request id, or an unknown status.
    """
    check(
        ticket=ticket, request_id=request_id, status=status, latency_s=latency_s,
        output_token_count=output_token_count, quality=quality,
    )  # fmt: skip
    if (ticket is None) == (request_id is None):
        raise ValueError("ticket, request_id: give exactly one of them")
    request = pb.ReportOutcomeRequest(output_token_count=output_token_count)
    if ticket is not None:
        if status not in OUTCOME_STATUSES:
            known = ", ".join(OUTCOME_STATUSES)
            raise ValueError(f"status: must be one of {known}, got {status!r}")
        request.ticket = ticket
        request.status = OUTCOME_STATUSES[status]
    elif request_id is not None:
        request.request_id = request_id
    if latency_s is not None:
        request.latency.CopyFrom(duration(latency_s))
    if quality is not None:
        request.quality = quality
    return request
