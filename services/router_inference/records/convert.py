"""Experience records as messages: what the path keeps, and what is written to Redis."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from router.decision import DQN_ROW, Board
from router.explanation import Explainer
from router.features import FEATURE_COUNT, SCHEMA
from router.fleet import Fleet
from router.seat import Stay
from router.shortlist import LEAST_CANDIDATES
from services.common import slo_kinds
from services.common.priorities import MESSAGE
from services.common.times import (
    set_duration,
    set_moment,
    set_signed_duration,
    timestamp_of,
)
from services.router_inference.job import Choice, Outcome
from tiercel.common.v1 import common_pb2, experience_pb2

OUTCOME_STATUS: dict[Outcome, common_pb2.OutcomeStatus.ValueType] = {
    Outcome.ON_TIME: common_pb2.OUTCOME_STATUS_ON_TIME,
    Outcome.LATE: common_pb2.OUTCOME_STATUS_LATE,
    Outcome.REFUSED: common_pb2.OUTCOME_STATUS_REFUSED,
    Outcome.CANCELLED: common_pb2.OUTCOME_STATUS_CANCELLED,
    Outcome.FAILED: common_pb2.OUTCOME_STATUS_FAILED,
    Outcome.INVALID: common_pb2.OUTCOME_STATUS_INVALID,
}
"""Status of each end, for records."""
STAYS: dict[Stay, common_pb2.ConversationStay.ValueType] = {
    Stay.NONE: common_pb2.CONVERSATION_STAY_UNSPECIFIED,
    Stay.NEW: common_pb2.CONVERSATION_STAY_NEW,
    Stay.KEPT: common_pb2.CONVERSATION_STAY_KEPT,
    Stay.CLOSED: common_pb2.CONVERSATION_STAY_CLOSED,
    Stay.DEADLINE: common_pb2.CONVERSATION_STAY_DEADLINE,
    Stay.TARGET: common_pb2.CONVERSATION_STAY_TARGET,
    Stay.WORTH: common_pb2.CONVERSATION_STAY_WORTH,
}
"""What became of a conversation, for messages."""
LEASE_EXPIRED = common_pb2.OUTCOME_STATUS_LEASE_EXPIRED
_FLOAT = np.dtype("<f4")


class OutcomeEntry(NamedTuple):
    """What an OutcomeRecord is made of; router_id and epoch are those of the decision."""

    router_id: str
    epoch: int
    sequence: int
    request_id: str
    end_ns: int
    status: common_pb2.OutcomeStatus.ValueType
    latency_s: float
    first_token_s: float | None
    output_tokens: int
    served_by: tuple[str, str] | None
    quality: float
    reward: float
    delivered_reward: float
    is_rescued: bool = False
    retry_count: int = 0
    feedback_quality: float | None = None
    reason: str = ""
    cached_prompt_tokens: int = 0


class RecordBuilder:
    """Makes messages of entries for one router process."""

    def __init__(
        self,
        *,
        router_id: str,
        epoch: int,
        explainer: Explainer,
        features_always: bool = False,
    ) -> None:
        """Takes the router's identity.

        Args:
            router_id: name of the process.
            epoch: its start stamp, ns since 1970.
            explainer: finds features again.
            features_always: True computes the features of decisions whose policy used none, so that
                a learner can learn from any policy's traffic; some 0.1 ms per record.
        """
        self._router_id = router_id
        self._epoch = epoch
        self._features_always = features_always
        self._explainer = explainer
        self._template: tuple[Fleet, experience_pb2.DecisionRecord] | None = None

    def payload(self, entry: Choice | OutcomeEntry, features: bytes = b"") -> bytes:
        """Returns the serialized ExperienceEntry.

        Args:
            entry: what it tells.
            features: what a decision's network read (`features_of`); empty: they are found again.
        """
        message = experience_pb2.ExperienceEntry()
        # Written in place: what is put into a message is copied, and every request is told of.
        if isinstance(entry, Choice):
            self._write_decision(message.decision, entry, features)
        else:
            _write_outcome(message.outcome, entry)
        return message.SerializeToString()

    def process(
        self, dropped_decisions: int, dropped_outcomes: int, is_end: bool, tell_ns: int
    ) -> bytes:
        """Returns the serialized ExperienceEntry in which the process tells of itself.

        Args:
            dropped_decisions: decisions dropped unwritten since its start.
            dropped_outcomes: outcomes dropped likewise.
            is_end: whether it writes no more.
            tell_ns: the present, ns since 1970.
        """
        record = experience_pb2.ProcessRecord(
            router_id=self._router_id,
            epoch=self._epoch,
            tell_time=timestamp_of(tell_ns),
            dropped_decision_count=dropped_decisions,
            dropped_outcome_count=dropped_outcomes,
            ended=is_end,
        )
        return experience_pb2.ExperienceEntry(process=record).SerializeToString()

    def _write_decision(
        self, record: experience_pb2.DecisionRecord, entry: Choice, features: bytes
    ) -> None:
        inputs, query = entry.inputs, entry.inputs.asked.query
        # A dozen candidates that change only with the fleet: copied instead of built per record.
        record.CopyFrom(self._of_fleet(inputs.fleet))
        record.sequence = entry.sequence
        record.request_id = entry.request_id
        set_moment(record.decide_time, entry.decide_ns)
        record.task = entry.task
        set_signed_duration(record.slack, entry.slack_s)
        record.feature_schema = SCHEMA
        if features:
            record.features, record.feature_count = features, FEATURE_COUNT
        elif inputs.rule.row == DQN_ROW or self._features_always:
            features_CF = np.ascontiguousarray(self._explainer.features(inputs), dtype=_FLOAT)
            record.features = features_CF.tobytes()
            record.feature_count = features_CF.shape[1]
        record.action = entry.action
        record.behavior_probability = entry.behavior_probability
        record.explored = entry.explored
        record.policy = entry.policy
        record.policy_version = entry.policy_version
        record.prompt_token_count = max(1, round(query.prompt_tokens))
        record.predicted_output_token_count = max(1, round(query.output_tokens))
        record.arrival_rate_rps = query.rate_short_rps
        record.target = entry.held.target
        record.target_pressure = entry.held.pressure
        record.conversation_stay = STAYS[entry.stay]
        record.priority = MESSAGE[entry.standing.priority]
        record.slo_kind = slo_kinds.MESSAGE[entry.slo_kind]
        if query.token_interval_s > 0.0:
            set_duration(record.token_interval, query.token_interval_s)

    def _of_fleet(self, fleet: Fleet) -> experience_pb2.DecisionRecord:
        if self._template is not None and self._template[0] is fleet:
            return self._template[1]
        record = experience_pb2.DecisionRecord(router_id=self._router_id, epoch=self._epoch)
        for row in range(fleet.candidate_count):
            tier, endpoint = fleet.candidate(row)
            record.candidates.add(tier=tier, endpoint=endpoint.name)
        self._template = (fleet, record)
        return record


def features_of(board: Board) -> bytes:
    """Returns what a network has read in the decision just taken, as records have it.

    Empty if it looked at a shortlist: records have the features of every candidate.
    """
    is_whole = len(board.allowed_C) <= LEAST_CANDIDATES
    return board.features_CF.astype(_FLOAT, copy=False).tobytes() if is_whole else b""


def _write_outcome(record: experience_pb2.OutcomeRecord, entry: OutcomeEntry) -> None:
    record.router_id = entry.router_id
    record.epoch = entry.epoch
    record.sequence = entry.sequence
    record.request_id = entry.request_id
    set_moment(record.end_time, max(0, entry.end_ns))
    record.status = entry.status
    set_duration(record.latency, entry.latency_s)
    record.output_token_count = entry.output_tokens
    record.quality = entry.quality
    record.reward = entry.reward
    record.delivered_reward = entry.delivered_reward
    record.rescued = entry.is_rescued
    record.retry_count = entry.retry_count
    record.reason = entry.reason
    record.cached_prompt_token_count = entry.cached_prompt_tokens
    if entry.first_token_s is not None:
        set_duration(record.first_token_latency, entry.first_token_s)
    if entry.served_by is not None:
        record.served_by.tier, record.served_by.endpoint = entry.served_by
    if entry.feedback_quality is not None:
        record.feedback_quality = entry.feedback_quality
