"""Spans of requests, built after they have ended from the stamps taken on the way.

Built for requests whose head was sampled, and for every bad one: missed, refused, failed, rescued,
retried, or served by a smaller tier because the larger ones were not usable. (A step-down that the
policy chose is its normal work under load; it is traced with the head's sample.)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from router.explanation import Explainer, Explanation
from router.features import FEATURES
from router.seat import Stay
from services.common.telemetry import NO_SPAN, SpanEvent, SpanIdentity, Telemetry
from services.router_inference.job import Attempt, Choice, Job, Outcome, StepDown

REQUEST_SPAN = "tiercel.request"
DECISION_SPAN = "tiercel.decision"
DISPATCH_SPAN = "tiercel.dispatch"
FIRST_TOKEN_EVENT = "gen_ai.first_token"  # noqa: S105 - no password

_FEATURE_NAMES = tuple(feature.name for feature in FEATURES)
_BAD_OUTCOMES = frozenset({Outcome.LATE, Outcome.REFUSED, Outcome.FAILED})
_BAD_STEP_DOWNS = frozenset({StepDown.RESCUE, StepDown.RETRY, StepDown.UNAVAILABLE})


class Tracing:
    """Makes the spans of one router process."""

    def __init__(
        self,
        *,
        telemetry: Telemetry,
        router_id: str,
        explainer: Explainer,
        bad_per_s: float = 20.0,
    ) -> None:
        """Takes its parts, and how many bad requests are traced per second."""
        self._telemetry = telemetry
        self._router_id = router_id
        self._bad_per_s = bad_per_s
        self._explainer = explainer
        self._bad_left = bad_per_s
        self._bad_s = 0.0

    def begin(self, job: Job) -> None:
        """Gives a request its identity in its trace."""
        job.trace = self._telemetry.begin(job.metadata, REQUEST_SPAN)

    def child(self, job: Job) -> SpanIdentity:
        """Returns the identity of a dispatch; it travels to Triton."""
        trace = job.trace
        # The identity is needed before the end only where Triton continues the trace.
        return self._telemetry.child(trace) if trace.sampled else NO_SPAN

    def emit(self, job: Job) -> None:
        """Builds the spans of an ended request if they are wanted."""
        if not self._telemetry.enabled:
            return
        is_bad = (
            job.outcome in _BAD_OUTCOMES or job.step_down in _BAD_STEP_DOWNS or job.retry_count > 0
        )
        if not (job.trace.sampled or (is_bad and self._take_bad(job.end_s))):
            return
        self._emit_request(job)
        if job.choice is not None:
            self._emit_decision(job, job.choice)
        for attempt in job.attempts:
            self._emit_attempt(job, attempt)

    def _take_bad(self, now_s: float) -> bool:
        """Returns whether one more bad request may be traced now."""
        earned = (now_s - self._bad_s) * self._bad_per_s
        self._bad_left = min(max(self._bad_per_s, 1.0), self._bad_left + max(0.0, earned))
        self._bad_s = now_s
        if self._bad_left < 1.0:
            return False
        self._bad_left -= 1.0
        return True

    def _emit_request(self, job: Job) -> None:
        assert job.outcome is not None
        attributes: dict[str, AttributeValue] = {
            "tiercel.router_id": self._router_id,
            "tiercel.request_id": job.request_id,
            "tiercel.task": job.task.name,
            "tiercel.outcome": job.outcome.value,
            "tiercel.deadline_s": job.deadline_s - job.arrival_s,
            "tiercel.slo_kind": job.request.slo_kind.value,
            "tiercel.rescued": job.is_rescued,
            "tiercel.retry_count": job.retry_count,
            "tiercel.step_down": job.step_down.value,
            "gen_ai.usage.output_tokens": job.output_tokens,
        }
        if job.tier:
            attributes["tiercel.tier"] = job.tier
            attributes["tiercel.endpoint"] = job.endpoint
            attributes["tiercel.quality"] = job.quality
        if job.arm is not None:
            attributes["tiercel.trial_arm"] = job.arm.value
        if job.reason:
            attributes["error.type"] = job.reason
        events: tuple[SpanEvent, ...] = ()
        if job.first_token_s:
            events = (SpanEvent(FIRST_TOKEN_EVENT, job.wall_ns(job.first_token_s)),)
        is_error = job.outcome in _BAD_OUTCOMES
        self._telemetry.emit(
            job.trace,
            REQUEST_SPAN,
            start_ns=job.arrival_ns,
            end_ns=job.wall_ns(job.end_s),
            kind=SpanKind.SERVER,
            attributes=attributes,
            events=events,
            error=(job.reason or job.outcome.value) if is_error else None,
            force=True,
        )

    def _emit_decision(self, job: Job, choice: Choice) -> None:
        self._telemetry.emit(
            self._telemetry.child(job.trace),
            DECISION_SPAN,
            start_ns=job.wall_ns(choice.start_s),
            end_ns=job.wall_ns(choice.end_s),
            attributes=decision_attributes(choice, self._explainer.explain(choice.inputs)),
            force=True,
        )

    def _emit_attempt(self, job: Job, attempt: Attempt) -> None:
        identity = attempt.trace
        if not identity.trace_id:
            identity = self._telemetry.child(job.trace)
        events: tuple[SpanEvent, ...] = ()
        if job.first_token_s and attempt is job.attempts[-1]:
            events = (SpanEvent(FIRST_TOKEN_EVENT, job.wall_ns(job.first_token_s)),)
        self._telemetry.emit(
            identity,
            DISPATCH_SPAN,
            start_ns=job.wall_ns(attempt.start_s),
            end_ns=job.wall_ns(attempt.end_s),
            kind=SpanKind.CLIENT,
            attributes={
                "tiercel.tier": attempt.target.tier,
                "tiercel.endpoint": attempt.target.endpoint,
                "tiercel.attempt_kind": attempt.kind,
                "tiercel.attempt_result": attempt.result,
                "gen_ai.request.max_tokens": job.max_output_tokens,
            },
            events=events,
            error=None if attempt.result in ("ok", "rescued") else attempt.result,
            force=True,
        )


def decision_attributes(choice: Choice, found: Explanation) -> Mapping[str, AttributeValue]:
    """Returns the attributes of a decision: observation, scores, predictions, choice."""
    candidates, query = choice.candidates, choice.inputs.asked.query
    attributes: dict[str, AttributeValue] = {
        "tiercel.policy": choice.policy,
        "tiercel.policy_version": choice.policy_version,
        "tiercel.sequence": choice.sequence,
        "tiercel.slack_s": choice.slack_s,
        "tiercel.prompt_tokens": query.prompt_tokens,
        "tiercel.predicted_output_tokens": query.output_tokens,
        "tiercel.decision.candidates": _names(candidates),
        "tiercel.decision.choice": "@".join(candidates[choice.action]),
        "tiercel.decision.scores": _finite(found.score_C),
        "tiercel.decision.predicted_latency_s": _finite(found.predicted_s_C),
        "tiercel.decision.on_time_probability": _finite(found.on_time_probability_C),
        "tiercel.decision.in_flight": _finite(found.in_flight_C),
        "tiercel.decision.behavior_probability": choice.behavior_probability,
        "tiercel.decision.explored": choice.explored,
        "tiercel.arrival_rate_rps": query.rate_short_rps,
        "tiercel.state_age_s": query.state_age_s,
    }
    if choice.stay is not Stay.NONE:
        attributes["tiercel.decision.stay"] = choice.stay.name.lower()
        attributes["tiercel.cached_prompt_tokens"] = choice.inputs.asked.seat.cached_tokens
    if choice.fallback_reason:
        attributes["tiercel.decision.fallback_reason"] = choice.fallback_reason
    if found.features_CF is not None:
        # The chosen row by name order of the feature schema; all rows are in the decision record.
        attributes["tiercel.decision.feature_names"] = _FEATURE_NAMES
        attributes["tiercel.decision.features"] = _finite(found.features_CF[choice.action])
    return attributes


def _finite(values: NDArray[np.floating]) -> list[float]:
    """Returns plain floats, with -1e308 for -inf, which OTLP/JSON cannot carry.

    A candidate that is not allowed has a score of -inf.
    """
    if not np.isfinite(values).all():
        values = np.nan_to_num(values.astype(np.float64), neginf=-1e308)
    plain: list[float] = values.tolist()
    return plain


@functools.lru_cache(8)
def _names(candidates: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Returns the names of a fleet's candidates."""
    return tuple(f"{tier}@{endpoint}" for tier, endpoint in candidates)
