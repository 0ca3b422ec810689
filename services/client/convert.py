"""Messages of the router become the client's dataclasses, here and nowhere else."""

from __future__ import annotations

import dataclasses

from google.protobuf.duration_pb2 import Duration

from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb

SLO_KINDS = {
    "": common_pb2.SLO_KIND_UNSPECIFIED,
    "complete_answer": common_pb2.SLO_KIND_COMPLETE_ANSWER,
    "first_token": common_pb2.SLO_KIND_FIRST_TOKEN,
}
OUTCOME_STATUSES = {
    "on_time": common_pb2.OUTCOME_STATUS_ON_TIME,
    "late": common_pb2.OUTCOME_STATUS_LATE,
    "refused": common_pb2.OUTCOME_STATUS_REFUSED,
    "cancelled": common_pb2.OUTCOME_STATUS_CANCELLED,
    "failed": common_pb2.OUTCOME_STATUS_FAILED,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer and what the router says about it.

    Attributes:
        text: The answer without the prompt; empty in the last event of a stream.
        request_id: The request's id.
        tier: Tier that answered.
        endpoint: Endpoint that answered.
        policy: Name of the policy that decided.
        policy_version: Its version.
        on_time: Whether it made its deadline, by the router's clock.
        quality: Quality of the tier on the task, 0 to 1.
        output_token_count: Tokens in the answer.
        dispatch_s: From arrival at the router to the last dispatch to Triton.
        first_token_s: To the first token; None if there was none.
        total_s: To the complete answer.
        step_down: Why a smaller tier answered (``policy``, ``rescue``, ...); empty if none did.
        finish_reason: ``stop`` or ``length``; empty if unknown.
        rescued: Whether it was rescued.
        retry_count: Retries on other endpoints.
        trace_id: Trace the call belongs to, 32 hex digits; empty without one.
    """

    text: str
    request_id: str
    tier: str
    endpoint: str
    policy: str
    policy_version: str
    on_time: bool
    quality: float
    output_token_count: int
    dispatch_s: float
    first_token_s: float | None
    total_s: float
    step_down: str
    finish_reason: str
    rescued: bool
    retry_count: int
    trace_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer: text to append and the number of tokens in it."""

    text: str
    token_count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Ticket:
    """A decision of ``Route`` for clients with their own data path.

    Attributes:
        ticket: Opaque bytes for ``report_outcome``.
        request_id: The request's id.
        tier: Tier chosen.
        endpoint: Endpoint chosen.
        address: The endpoint's gRPC address.
        model_name: Triton model to call there.
        lease_expire_unix_s: When the lease ends, seconds since 1970.
        predicted_latency_s: Predicted time to the answer; None if the policy predicts none.
        quality: Quality of the tier on the task, 0 to 1.
        policy: Name of the policy that decided.
        policy_version: Its version.
    """

    ticket: bytes
    request_id: str
    tier: str
    endpoint: str
    address: str
    model_name: str
    lease_expire_unix_s: float
    predicted_latency_s: float | None
    quality: float
    policy: str
    policy_version: str


def duration(seconds: float) -> Duration:
    """Makes a protobuf duration."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
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


def answer_of(completion: pb.Completion, text: str, trace_id: str) -> Answer:
    """Makes an Answer from a completion."""
    timings = completion.timings
    first = seconds(timings.first_token) if timings.HasField("first_token") else None
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
        first_token_s=first,
        total_s=seconds(timings.total),
        step_down=step_down_name(completion.step_down_reason),
        finish_reason=completion.finish_reason,
        rescued=completion.rescued,
        retry_count=completion.retry_count,
        trace_id=trace_id,
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
    quality_floor: float = 0.0,
    tier: str = "",
    request_id: str = "",
) -> pb.GenerationSpec:
    """Makes the message both Generate calls share; the router checks the values.

    Raises:
        ValueError: ``slo_kind`` is neither empty, ``complete_answer`` nor ``first_token``.
    """
    if slo_kind not in SLO_KINDS:
        raise ValueError(f"slo_kind: must be complete_answer or first_token, got {slo_kind!r}")
    spec = pb.GenerationSpec(
        prompt=prompt,
        task=task,
        slo_kind=SLO_KINDS[slo_kind],
        quality_floor=quality_floor,
        tier=tier,
        request_id=request_id,
    )
    if max_output_tokens is not None:
        spec.max_output_tokens = max_output_tokens
    if deadline_s is not None:
        spec.deadline.CopyFrom(duration(deadline_s))
    if temperature or seed is not None:
        spec.sampling.temperature = temperature
        if seed is not None:
            spec.sampling.seed = seed
    return spec
