"""Messages of the contract to dataclasses and back."""

from __future__ import annotations

import math

import numpy as np
from google.protobuf.message import DecodeError

from services.common.times import seconds_of, set_duration
from services.trainer.model import Mode, PolicyRecord, RunProgress, Stage
from tiercel.common.v1 import common_pb2, experience_pb2
from tiercel.trainer.v1 import trainer_service_pb2 as pb
from trainer.learning.online.joining import DecisionRecord, Ending, OutcomeRecord

_MOST_FEATURE_BYTES = 16 * 1024 * 1024

_ENDINGS = {
    common_pb2.OUTCOME_STATUS_ON_TIME: Ending.ANSWERED,
    common_pb2.OUTCOME_STATUS_LATE: Ending.ANSWERED,
    common_pb2.OUTCOME_STATUS_REFUSED: Ending.REFUSED,
    common_pb2.OUTCOME_STATUS_FAILED: Ending.REFUSED,
    common_pb2.OUTCOME_STATUS_CANCELLED: Ending.CANCELLED,
    common_pb2.OUTCOME_STATUS_LEASE_EXPIRED: Ending.CANCELLED,
    common_pb2.OUTCOME_STATUS_INVALID: Ending.CANCELLED,
}


class BadRecordError(ValueError):
    """An entry of the experience stream is malformed; it is counted and dropped."""


def experience_from(payload: bytes) -> DecisionRecord | OutcomeRecord:
    """Returns the record of a stream entry.

    Raises:
        BadRecordError: It cannot be decoded, or a field is missing or out of range.
    """
    try:
        entry = experience_pb2.ExperienceEntry.FromString(payload)
    except DecodeError as error:
        raise BadRecordError("not an ExperienceEntry") from error
    if entry.HasField("decision"):
        return _decision_from(entry.decision)
    if entry.HasField("outcome"):
        return _outcome_from(entry.outcome)
    raise BadRecordError("entry without a record")


def _decision_from(record: experience_pb2.DecisionRecord) -> DecisionRecord:
    key = _key(record.router_id, record.epoch, record.sequence)
    rows, columns = len(record.candidates), record.feature_count
    if not 0 <= record.action < max(rows, 1):
        raise BadRecordError(f"action {record.action} of {rows} candidates")
    features_CF = None
    if record.features:
        if len(record.features) > _MOST_FEATURE_BYTES:
            raise BadRecordError("features are too long")
        if rows < 1 or columns < 1 or len(record.features) != 4 * rows * columns:
            raise BadRecordError(f"features do not hold {rows} x {columns} numbers")
        flat = np.frombuffer(record.features, dtype="<f4").astype(np.float32)
        features_CF = flat.reshape(rows, columns)
    if not 0.0 < record.behavior_probability <= 1.0:
        raise BadRecordError(f"behavior_probability {record.behavior_probability}")
    return DecisionRecord(
        key=key,
        time_s=seconds_of(record.decide_time),
        features_CF=features_CF,
        action=record.action,
        feature_schema=record.feature_schema,
        policy_version=record.policy_version,
        behavior_probability=record.behavior_probability,
        slack_s=seconds_of(record.slack),
        task=record.task,
    )


def _outcome_from(record: experience_pb2.OutcomeRecord) -> OutcomeRecord:
    ending = _ENDINGS.get(record.status)
    if ending is None:
        raise BadRecordError(f"outcome status {record.status}")
    if not (math.isfinite(record.reward) and 0.0 <= record.reward <= 1.0):
        raise BadRecordError(f"reward {record.reward}")
    return OutcomeRecord(
        _key(record.router_id, record.epoch, record.sequence), record.reward, ending
    )


def _key(router_id: str, epoch: int, sequence: int) -> tuple[str, int, int]:
    if not router_id or epoch <= 0 or sequence <= 0:
        raise BadRecordError(f"key ({router_id!r}, {epoch}, {sequence})")
    return (router_id, epoch, sequence)


def policy_info(record: PolicyRecord) -> pb.PolicyInfo:
    """Returns the message of a policy."""
    info = pb.PolicyInfo(
        policy=record.policy,
        policy_version=record.version,
        stage=pb.PolicyStage.ValueType(record.stage.value),
        feature_schema=record.feature_schema,
        transition_count=record.transition_count,
        description=record.description,
        scores=dict(record.scores),
    )
    if record.publish_ns:
        info.publish_time.FromNanoseconds(record.publish_ns)
    return info


def encode_policy(record: PolicyRecord) -> bytes:
    """Returns the form a policy has in the store."""
    return policy_info(record).SerializeToString()


def decode_policy(blob: bytes) -> PolicyRecord:
    """Returns the record of a policy in the store."""
    info = pb.PolicyInfo.FromString(blob)
    stage = info.stage or pb.POLICY_STAGE_PROPOSED
    return PolicyRecord(
        policy=info.policy,
        version=info.policy_version,
        stage=Stage(int(stage)),
        feature_schema=info.feature_schema,
        publish_ns=info.publish_time.ToNanoseconds(),
        transition_count=info.transition_count,
        description=info.description,
        scores=dict(info.scores),
    )


def mode_from(mode: pb.TrainingMode.ValueType) -> Mode | None:
    """Returns the mode asked for, None if it is not known."""
    if mode in (pb.TRAINING_MODE_UNSPECIFIED, pb.TRAINING_MODE_ONLINE):
        return Mode.ONLINE
    return Mode.SIMULATED if mode == pb.TRAINING_MODE_SIMULATED else None


def progress_message(progress: RunProgress) -> pb.TrainingProgress:
    """Returns the message of a run's progress."""
    message = pb.TrainingProgress(
        training_id=progress.training_id,
        mode=pb.TrainingMode.ValueType(progress.mode.value),
        state=pb.TrainingState.ValueType(progress.state.value),
        step_count=progress.step_count,
        planned_step_count=progress.planned_step_count,
        transition_count=progress.transition_count,
        epsilon=progress.epsilon,
        policy_version=progress.policy_version,
        error=progress.error,
        steps_per_second=progress.steps_per_second,
    )
    if progress.loss is not None:
        message.loss = progress.loss
    if progress.mean_reward is not None:
        message.mean_reward = progress.mean_reward
    if progress.time_left_s is not None:
        set_duration(message.time_left, progress.time_left_s)
    return message
