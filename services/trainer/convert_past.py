"""Experience records as past requests: when they came, what they asked for, what they earned."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from google.protobuf.message import DecodeError

from router.types import LONGEST_TOKEN_INTERVAL_S, SloKind
from services.common import slo_kinds
from services.common.times import seconds_of
from tiercel.common.v1 import common_pb2, experience_pb2
from trainer.evaluation.past import PastRequest
from trainer.learning.online.joining import DecisionKey

_MOST_RECORD_BYTES = 1024 * 1024
_LONGEST_ROUTER_ID = 128
_MOST_TOKENS = 10_000_000
_MOST_SLACK_S = 86_400.0
_COUNTED = (
    common_pb2.OUTCOME_STATUS_ON_TIME,
    common_pb2.OUTCOME_STATUS_LATE,
    common_pb2.OUTCOME_STATUS_REFUSED,
    common_pb2.OUTCOME_STATUS_FAILED,
)
"""Ends that count; a cancelled request says nothing."""
_UNSEATED = (common_pb2.CONVERSATION_STAY_UNSPECIFIED, common_pb2.CONVERSATION_STAY_NEW)
"""Of a conversation nothing was known, or there was none."""


class PastDecision(NamedTuple):
    """What a decision says of its request.

    Attributes:
        key: of the decision.
        decide_s: when it was made, seconds since 1970.
        task: name of the task.
        slack_s: time left to the deadline.
        prompt_tokens: prompt tokens.
        output_tokens: predicted output tokens.
        has_seat: its conversation was served before.
        is_kept: it was sent where that was.
        slo_kind: what its deadline is measured against; None: a router of an earlier version, which
            did not say.
        token_interval_s: time between the due times of two tokens; 0 unless each has its own.
    """

    key: DecisionKey
    decide_s: float
    task: str
    slack_s: float
    prompt_tokens: int
    output_tokens: int
    has_seat: bool
    is_kept: bool
    slo_kind: SloKind | None
    token_interval_s: float


class PastEnd(NamedTuple):
    """What an outcome says of its request.

    Attributes:
        key: of the decision.
        end_s: when it ended, seconds since 1970.
        latency_s: time from its arrival to its end.
        output_tokens: tokens of a whole answer; 0 if there was none.
        cached_tokens: prompt tokens taken for cached where it was sent last.
        is_moved: that is not where it was sent first.
        reward: what was delivered earned.
        counts: whether it counts.
    """

    key: DecisionKey
    end_s: float
    latency_s: float
    output_tokens: int
    cached_tokens: int
    is_moved: bool
    reward: float
    counts: bool


def past_of(payload: bytes, tasks: Collection[str]) -> PastDecision | PastEnd | None:
    """Returns what an entry of the experience stream says; None for one that cannot be right."""
    if len(payload) > _MOST_RECORD_BYTES:
        return None
    try:
        entry = experience_pb2.ExperienceEntry.FromString(payload)
    except DecodeError:
        return None
    if entry.HasField("decision"):
        return _decision(entry.decision, tasks)
    return _end(entry.outcome) if entry.HasField("outcome") else None


def request_of(made: PastDecision, end: PastEnd) -> PastRequest:
    """Returns the request of a decision and its outcome."""
    arrival_s = end.end_s - end.latency_s
    return PastRequest(
        task=made.task,
        arrival_s=arrival_s,
        prompt_tokens=made.prompt_tokens,
        # What would have come of an answer that was never complete is not known: as predicted.
        output_tokens=end.output_tokens or made.output_tokens,
        slack_s=max(0.0, made.slack_s + made.decide_s - arrival_s),
        reward=end.reward,
        cached_tokens=_cached_tokens(made, end),
        slo_kind=made.slo_kind,
        token_interval_s=made.token_interval_s,
    )


def _cached_tokens(made: PastDecision, end: PastEnd) -> int:
    """Returns how many prompt tokens need not have been computed, at best.

    What a seat had that was left is not known: all but one token.
    """
    most = made.prompt_tokens - 1
    if made.has_seat and (end.is_moved or not made.is_kept):
        return most
    return min(end.cached_tokens, most)


def _decision(record: experience_pb2.DecisionRecord, tasks: Collection[str]) -> PastDecision | None:
    slack_s = seconds_of(record.slack)
    interval_s = seconds_of(record.token_interval)
    is_good = (
        record.task in tasks
        and len(record.router_id) <= _LONGEST_ROUTER_ID
        and abs(slack_s) <= _MOST_SLACK_S
        and 0.0 <= interval_s <= LONGEST_TOKEN_INTERVAL_S
        and 1 <= record.prompt_token_count <= _MOST_TOKENS
        and 1 <= record.predicted_output_token_count <= _MOST_TOKENS
    )
    if not is_good:
        return None
    return PastDecision(
        key=(record.router_id, record.epoch, record.sequence),
        decide_s=seconds_of(record.decide_time),
        task=record.task,
        slack_s=slack_s,
        prompt_tokens=record.prompt_token_count,
        output_tokens=record.predicted_output_token_count,
        has_seat=record.conversation_stay not in _UNSEATED,
        is_kept=record.conversation_stay == common_pb2.CONVERSATION_STAY_KEPT,
        slo_kind=slo_kinds.OF_MESSAGE.get(record.slo_kind),
        token_interval_s=interval_s,
    )


def _end(record: experience_pb2.OutcomeRecord) -> PastEnd | None:
    latency_s = seconds_of(record.latency)
    # Written so that what is no number is not good.
    is_good = (
        0.0 <= latency_s <= _MOST_SLACK_S
        and 0.0 <= record.delivered_reward <= 1.0
        and 0 <= record.output_token_count <= _MOST_TOKENS
        and 0 <= record.cached_prompt_token_count <= _MOST_TOKENS
    )
    if not is_good:
        return None
    # A late one is whole if somebody delivered it to its end, as streams are.
    is_whole = record.status == common_pb2.OUTCOME_STATUS_ON_TIME or record.HasField("served_by")
    return PastEnd(
        key=(record.router_id, record.epoch, record.sequence),
        end_s=seconds_of(record.end_time),
        latency_s=latency_s,
        output_tokens=record.output_token_count if is_whole else 0,
        cached_tokens=record.cached_prompt_token_count,
        is_moved=record.rescued or record.retry_count > 0,
        reward=record.delivered_reward,
        counts=record.status in _COUNTED,
    )
