"""Messages of the router's own service to and from dataclasses."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf.duration_pb2 import Duration

from router.decision import HAS_PRICE
from router.dqn.network import NOT_LISTED
from router.explanation import Explanation, Larger
from router.features import FEATURES
from router.priority import factor
from router.seat import NOWHERE
from services.common import priorities, slo_kinds
from services.common.checks import Checks
from services.common.times import seconds_of, set_duration, set_moment, set_signed_duration
from services.router_inference.doors.validation import MAX_REQUEST_ID_CHARACTERS
from services.router_inference.job import Ask, Choice, Job, Outcome, StepDown
from services.router_inference.path.leases import Report, Routed
from services.router_inference.records.convert import STAYS
from services.router_inference.records.spent import time_spent
from services.router_inference.status import RouterStatus
from services.router_inference.view.convert import profile_state, token_outcomes
from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

MAX_LATENCY_S = 86_400.0
"""Longest latency a client may report: the highest limit of a deadline that settings allow."""
MAX_OUTPUT_TOKENS = 65_536
"""Most output tokens a client may report: the highest limit that settings allow."""
TIMEOUT_KEY = "tiercel-timeout-ms"
"""Metadata of a call: the time limit it began with, whole milliseconds."""
_MOST_TIMEOUT_DIGITS = 9
_STEP_DOWNS: dict[StepDown, common_pb2.StepDownReason.ValueType] = {
    StepDown.NONE: common_pb2.STEP_DOWN_REASON_UNSPECIFIED,
    StepDown.POLICY: common_pb2.STEP_DOWN_REASON_POLICY,
    StepDown.RESCUE: common_pb2.STEP_DOWN_REASON_RESCUE,
    StepDown.RETRY: common_pb2.STEP_DOWN_REASON_RETRY,
    StepDown.UNAVAILABLE: common_pb2.STEP_DOWN_REASON_UNAVAILABLE,
    StepDown.PINNED: common_pb2.STEP_DOWN_REASON_PINNED,
}
REPORTED_OUTCOMES: dict[int, Outcome] = {
    common_pb2.OUTCOME_STATUS_ON_TIME: Outcome.ON_TIME,
    common_pb2.OUTCOME_STATUS_LATE: Outcome.LATE,
    common_pb2.OUTCOME_STATUS_CANCELLED: Outcome.CANCELLED,
    common_pb2.OUTCOME_STATUS_FAILED: Outcome.FAILED,
}
"""Ends a client may report for a routed request."""


def ask_of_spec(
    spec: pb2.GenerationSpec,
    call_left_s: float | None,
    metadata: Any,
    client: str,
    *,
    is_stream: bool,
) -> Ask:
    """Reads what a Generate or GenerateStream request asks for; nothing is checked."""
    ask = Ask(
        task=spec.task,
        prompt=spec.prompt,
        quality_floor=spec.quality_floor,
        tier=spec.tier,
        request_id=spec.request_id,
        conversation_id=spec.conversation_id,
        call_left_s=call_left_s,
        waited_s=waited_s(call_left_s, metadata),
        is_stream=is_stream,
        metadata=metadata or (),
        client=client,
    )
    if spec.HasField("max_output_tokens"):
        ask.max_output_tokens = spec.max_output_tokens
    if spec.HasField("deadline"):
        ask.deadline_s = _span_s(spec.deadline)
    if spec.slo_kind:
        ask.slo_kind = slo_kinds.OF_MESSAGE.get(spec.slo_kind, spec.slo_kind)
    if spec.HasField("token_interval"):
        ask.token_interval_s = _span_s(spec.token_interval)
    if spec.priority:
        ask.priority = priorities.of_message(spec.priority)
    if spec.HasField("sampling"):
        ask.temperature = spec.sampling.temperature
        if spec.sampling.HasField("seed"):
            ask.seed = spec.sampling.seed
    return ask


def waited_s(call_left_s: float | None, metadata: Any) -> float:
    """Returns how long a call waited before it was seen here, 0 if it does not tell.

    gRPC tells what is left of a call's time limit, but not what it began with; our own clients
    state that in their metadata. A statement that cannot be is none.
    """
    if call_left_s is None or not metadata:
        return 0.0
    for key, value in metadata:
        if key == TIMEOUT_KEY:
            if len(value) > _MOST_TIMEOUT_DIGITS or not value.isdecimal():
                return 0.0
            return max(0.0, int(value) / 1e3 - max(0.0, call_left_s))
    return 0.0


def ask_of_route(request: pb2.RouteRequest, metadata: Any, client: str) -> Ask:
    """Reads what a Route request asks for.

    Its deadline is not bound by the call's, which ends with the decision.
    """
    ask = Ask(
        task=request.task,
        prompt_tokens=request.prompt_token_count,
        quality_floor=request.quality_floor,
        tier=request.tier,
        request_id=request.request_id,
        conversation_id=request.conversation_id,
        metadata=metadata or (),
        client=client,
    )
    if request.HasField("max_output_tokens"):
        ask.max_output_tokens = request.max_output_tokens
    if request.HasField("deadline"):
        ask.deadline_s = _span_s(request.deadline)
    if request.slo_kind:
        ask.slo_kind = slo_kinds.OF_MESSAGE.get(request.slo_kind, request.slo_kind)
    if request.HasField("token_interval"):
        ask.token_interval_s = _span_s(request.token_interval)
    if request.priority:
        ask.priority = priorities.of_message(request.priority)
    return ask


def _span_s(message: Duration) -> float:
    """Returns a span in seconds, NaN if the message is no valid one."""
    nanos = message.nanos
    valid = abs(nanos) < 1_000_000_000 and message.seconds * nanos >= 0
    return seconds_of(message) if valid else math.nan


def _complete(message: pb2.Completion, job: Job) -> None:
    """Writes what is known about an answer, in place: what is put into a message is copied."""
    choice, target = job.choice, job.target
    assert choice is not None  # who was answered was decided for
    assert target is not None
    message.request_id = job.request_id
    message.tier = target.tier
    message.endpoint = target.endpoint
    message.policy = choice.policy
    message.policy_version = choice.policy_version
    message.on_time = job.outcome is Outcome.ON_TIME
    message.quality = job.quality
    message.output_token_count = job.output_tokens
    message.finish_reason = job.finish_reason
    timings = message.timings
    set_duration(timings.dispatch, job.dispatch_s - job.arrival_s)
    set_duration(timings.total, job.end_s - job.arrival_s)
    if job.first_token_s:
        set_duration(timings.first_token, job.first_token_s - job.arrival_s)
    set_signed_duration(timings.early, job.deadline_s - job.deadline_event_s)
    spent = time_spent(job)
    set_duration(timings.queue, spent.queue_s)
    set_duration(timings.prefill, spent.prefill_s)
    set_duration(timings.decode, spent.decode_s)
    set_duration(timings.hop, spent.hop_s)
    if job.step_down is not StepDown.NONE:
        message.step_down_reason = _STEP_DOWNS[job.step_down]
    if choice.stay:
        message.conversation_stay = STAYS[choice.stay]
        cached = round(job.cached_at((job.tier, job.endpoint)))
        if cached:
            message.cached_prompt_token_count = cached
    if job.is_rescued:
        message.rescued = True
    if job.retry_count:
        message.retry_count = job.retry_count


def generate_response(job: Job, text: str) -> pb2.GenerateResponse:
    """Returns the answer to Generate."""
    response = pb2.GenerateResponse(text=text)
    _complete(response.completion, job)
    return response


class StreamReply:
    """Makes the messages of one streamed answer; each is good until the next is made."""

    __slots__ = ("_chunk", "_message")

    def __init__(self) -> None:
        self._message = pb2.GenerateStreamResponse()
        self._chunk = self._message.chunk

    def portion(self, text: str, token_count: int) -> pb2.GenerateStreamResponse:
        """Returns the message of a piece."""
        chunk = self._chunk
        chunk.text, chunk.token_count = text, max(1, token_count)
        return self._message

    def end(self, job: Job) -> pb2.GenerateStreamResponse:
        """Returns the last message."""
        _complete(self._message.completion, job)
        return self._message


def route_response(routed: Routed) -> pb2.RouteResponse:
    """Returns a decision."""
    job, choice, target = routed.job, routed.choice, routed.choice.target
    response = pb2.RouteResponse(
        request_id=job.request_id,
        tier=job.tier,
        endpoint=job.endpoint,
        address=target.address,
        model_name=target.model,
        ticket=routed.ticket,
        quality=job.quality,
        policy=choice.policy,
        policy_version=choice.policy_version,
    )
    set_moment(response.lease_expire_time, routed.lease_end_ns)
    set_duration(response.predicted_latency, choice.predicted_s)
    return response


def report(request: pb2.ReportOutcomeRequest) -> Report:
    """Reads how a routed request ended.

    Raises:
        InvalidArgumentError: with every field that is wrong.
    """
    checks = Checks()
    outcome = REPORTED_OUTCOMES.get(request.status)
    checks.require(
        bool(request.ticket), "ticket", "is empty; give a ticket, or a request id with a quality"
    )
    checks.require(outcome is not None, "status", "must be ON_TIME, LATE, CANCELLED or FAILED")
    latency_s: float | None = None
    if request.HasField("latency"):
        latency_s = checks.duration("latency", request.latency, 0.0, MAX_LATENCY_S)
    # The ticket knows its own, lower limit.
    checks.count("output_token_count", request.output_token_count, MAX_OUTPUT_TOKENS)
    quality = request.quality if request.HasField("quality") else None
    if quality is not None:
        checks.number("quality", quality, 0.0, 1.0)
    checks.raise_if_any()
    assert outcome is not None  # checked
    return Report(outcome, latency_s, request.output_token_count, quality)


def feedback_quality(request: pb2.ReportOutcomeRequest) -> float:
    """Returns the quality of late feedback.

    Raises:
        InvalidArgumentError: It is missing, or a field is out of range.
    """
    checks = Checks()
    checks.text("request_id", request.request_id, MAX_REQUEST_ID_CHARACTERS, least=1)
    has_quality = request.HasField("quality")
    if checks.require(
        has_quality, "quality", "is missing; with a request id it is needed", "0 to 1"
    ):
        checks.number("quality", request.quality, 0.0, 1.0)
    checks.raise_if_any()
    return request.quality


def explanation_response(
    choice: Choice, found: Explanation, larger: Larger
) -> pb2.ExplainDecisionResponse:
    """Returns a decision with all its numbers, and what it would have taken for a larger tier."""
    query, fleet = choice.inputs.asked.query, choice.inputs.fleet.arrays
    seat = choice.inputs.asked.seat
    has_price = HAS_PRICE[choice.inputs.rule.row]
    response = pb2.ExplainDecisionResponse(
        request_id=choice.request_id,
        sequence=choice.sequence,
        task=choice.task,
        policy=choice.policy,
        policy_version=choice.policy_version,
        fallback_reason=choice.fallback_reason,
        action=choice.action,
        behavior_probability=choice.behavior_probability,
        explored=choice.explored,
        prompt_token_count=max(1, round(query.prompt_tokens)),
        predicted_output_token_count=max(1, round(query.output_tokens)),
        arrival_rate_rps=query.rate_short_rps,
        target=choice.held.target,
        target_pressure=choice.held.pressure,
        smallest_tier_only=choice.held.is_small and has_price,
        policy_has_price=has_price,
        conversation_stay=STAYS[choice.stay],
    )
    if choice.stay:
        response.conversation_margin = max(0.0, seat.margin)
    if seat.row != NOWHERE:
        response.conversation_seat = seat.row
    response.decide_time.FromNanoseconds(choice.decide_ns)
    set_duration(response.slack, choice.slack_s)
    set_duration(response.state_age, query.state_age_s)
    for row, (tier, endpoint) in enumerate(choice.candidates):
        entry = response.candidates.add(
            candidate=common_pb2.Candidate(tier=tier, endpoint=endpoint),
            allowed=found.allowed_C[row],
            away=found.away_C[row],
            on_time_probability=found.on_time_probability_C[row],
            in_flight_count=round(found.in_flight_C[row]),
            quality=fleet.quality_KC[query.task, row],
        )
        if row == seat.row:
            entry.cached_prompt_token_count = round(seat.cached_tokens)
        set_duration(entry.predicted_latency, min(found.predicted_s_C[row], MAX_LATENCY_S))
        if found.allowed_C[row] and found.score_C[row] > NOT_LISTED:
            entry.score = found.score_C[row]
        if found.features_CF is not None:
            entry.features.extend(found.features_CF[row].tolist())
    if found.features_CF is not None:
        response.feature_names.extend(feature.name for feature in FEATURES)
    if larger.slack_s is not None:
        set_duration(response.larger_tier_slack, larger.slack_s)
    response.larger_tier_if_idle = larger.if_idle
    standing, told = choice.standing, response.priority
    told.priority = priorities.MESSAGE[standing.priority]
    told.asked = priorities.MESSAGE[standing.asked]
    told.price_factor = factor(standing.log_price)
    told.admission_factor = 1.0
    if choice.inputs.asked.admission_factor > 0.0:
        told.admission_factor = factor(standing.log_caution)
        told.owed = standing.is_owed
    return response


def status_response(status: RouterStatus) -> pb2.GetRouterStatusResponse:
    """Returns the status."""
    response = pb2.GetRouterStatusResponse(
        router_id=status.router_id,
        epoch=status.epoch,
        policy=status.policy,
        policy_version=status.policy_version,
        fallback_active=status.fallback_active,
        degraded_reasons=status.degraded_reasons,
        topology_version=status.topology_version,
        arrival_rate_rps=status.arrival_rate_rps,
        in_flight_count=status.in_flight,
        refused_snapshot_counts=status.refused_snapshots,
        known_policies=status.known_policies,
        conversation_counts=status.conversation_counts,
        watched_activation=status.watched_activation,
        watch_problem=status.watch_problem,
        quality_version=status.quality_version,
    )
    response.profiles.extend(map(profile_state, status.profiles))
    for task, attained in zip(status.tasks, status.attainments, strict=True):
        told = response.tasks.add(
            task=task.name,
            target=attained.target,
            settings_target=attained.settings_target,
            on_time_count=attained.on_time,
            missed_count=attained.missed,
        )
        set_duration(told.default_deadline, task.default_deadline_s)
    for stood in status.priorities:
        response.priorities.add(
            priority=priorities.MESSAGE[stood.priority],
            on_time_count=stood.on_time,
            missed_count=stood.missed,
            refused_count=stood.refused,
            price_factor=stood.price_factor,
        )
    for name, ends in status.token_ends.items():
        response.token_outcomes.add(task=name, outcomes=map(token_outcomes, ends))
    for each in status.qualities:
        response.tier_qualities.add(
            task=each.task,
            tier=each.tier,
            quality=each.quality,
            settings_quality=each.settings_quality,
            error=each.error,
            report_count=each.reports,
        )
    if status.state_age_s is not None:
        set_duration(response.state_age, status.state_age_s)
    explores = response.exploration
    explores.share = status.exploration.share
    explores.least_on_time_probability = status.exploration.on_time
    explores.decision_counts.update(status.exploration_counts)
    if status.experience is not None:
        waiting = response.experience
        waiting.waiting_count = status.experience.count
        waiting.dropped_counts.update(status.experience.dropped)
        set_duration(waiting.oldest_age, status.experience.oldest_s)
    for item in status.candidates:
        entry = response.candidates.add(
            candidate=common_pb2.Candidate(tier=item.tier, endpoint=item.endpoint),
            own_in_flight_count=item.own_in_flight,
            other_in_flight_count=item.other_in_flight,
            usable=not item.reason,
            reason=item.reason,
        )
        set_duration(entry.predicted_latency, item.predicted_s)
    return response
