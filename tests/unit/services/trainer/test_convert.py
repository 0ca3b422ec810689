"""Messages to dataclasses: every bad record is refused with a reason, never a crash."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer import convert
from services.trainer.model import Mode, PolicyRecord, RunProgress, RunState, Stage
from tiercel.common.v1 import common_pb2, experience_pb2
from tiercel.trainer.v1 import trainer_service_pb2 as pb
from trainer.learning.online.joining import DecisionRecord, Ending, OutcomeRecord


def decision(**changes: Any) -> experience_pb2.DecisionRecord:
    """Returns a sound decision of 2 candidates x 3 features with fields changed."""
    fields: dict[str, Any] = {
        "router_id": "r",
        "epoch": 5,
        "sequence": 7,
        "request_id": "q",
        "task": "t",
        "feature_schema": "s",
        "candidates": [common_pb2.Candidate(tier=t, endpoint="e") for t in ("a", "b")],
        "features": np.arange(6, dtype="<f4").tobytes(),
        "feature_count": 3,
        "action": 1,
        "behavior_probability": 0.5,
        "policy": "dqn",
        "policy_version": "v",
    }
    record = experience_pb2.DecisionRecord(**{**fields, **changes})
    record.decide_time.FromNanoseconds(1_500_000_000)
    record.slack.FromNanoseconds(-250_000_000)
    return record


def outcome(**changes: Any) -> experience_pb2.OutcomeRecord:
    """Returns a sound outcome with fields changed."""
    status = common_pb2.OUTCOME_STATUS_ON_TIME
    fields = {"router_id": "r", "epoch": 1, "sequence": 1, "status": status, "reward": 0.5}
    return experience_pb2.OutcomeRecord(**{**fields, **changes})


def entry(record: Any) -> bytes:
    """Returns the stream entry of a record."""
    kind = "decision" if isinstance(record, experience_pb2.DecisionRecord) else "outcome"
    return experience_pb2.ExperienceEntry(**{kind: record}).SerializeToString()


def test_decision() -> None:
    """Every field the learner needs arrives."""
    record = convert.experience_from(entry(decision()))
    assert isinstance(record, DecisionRecord)
    assert record.key == ("r", 5, 7)
    assert (record.time_s, record.slack_s, record.action) == (1.5, -0.25, 1)
    assert record.features_CF is not None
    np.testing.assert_array_equal(record.features_CF, np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("status", "ending"),
    [
        ("ON_TIME", Ending.ANSWERED),
        ("LATE", Ending.ANSWERED),
        ("REFUSED", Ending.REFUSED),
        ("FAILED", Ending.REFUSED),
        ("CANCELLED", Ending.CANCELLED),
        ("LEASE_EXPIRED", Ending.CANCELLED),
    ],
)
def test_outcome(status: str, ending: Ending) -> None:
    """Each status has its ending."""
    record = experience_pb2.OutcomeRecord(
        router_id="r", epoch=1, sequence=2, reward=0.25,
        status=common_pb2.OutcomeStatus.Value(f"OUTCOME_STATUS_{status}"),
    )  # fmt: skip
    assert convert.experience_from(entry(record)) == OutcomeRecord(("r", 1, 2), 0.25, ending)


@pytest.mark.parametrize(
    "bad",
    [
        decision(router_id=""),
        decision(epoch=0),
        decision(sequence=0),
        decision(action=2),
        decision(action=-1),
        decision(features=b"123"),
        decision(feature_count=4),
        decision(feature_count=0),
        decision(behavior_probability=0.0),
        decision(behavior_probability=1.5),
        experience_pb2.OutcomeRecord(router_id="r", epoch=1, sequence=1),
        outcome(reward=2.0),
        outcome(reward=-0.1),
        outcome(reward=float("nan")),
        outcome(router_id=""),
    ],
)
def test_malformed_record_is_refused(bad: Any) -> None:
    """A field out of range is a BadRecordError."""
    with pytest.raises(convert.BadRecordError):
        convert.experience_from(entry(bad))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused(payload: bytes) -> None:
    """Arbitrary bytes give a record or BadRecordError, nothing else."""
    try:
        convert.experience_from(payload)
    except convert.BadRecordError:
        return


def test_policy_round_trip() -> None:
    """What the store gives back is what went in."""
    record = PolicyRecord(
        policy="dqn", version="v", stage=Stage.REJECTED, feature_schema="s",
        publish_ns=1_700_000_000_123_456_789, transition_count=9, description="d",
        scores={"performance": 0.5},
    )  # fmt: skip
    assert convert.decode_policy(convert.encode_policy(record)) == record


def test_enums_match_the_contract() -> None:
    """Our numbers are the contract's; two stages it reserves are never sent."""
    reserved = {"POLICY_STAGE_SHADOW", "POLICY_STAGE_CANARY"}
    for ours, prefix, theirs in (
        (Stage, "POLICY_STAGE_", pb.PolicyStage),
        (Mode, "TRAINING_MODE_", pb.TrainingMode),
        (RunState, "TRAINING_STATE_", pb.TrainingState),
    ):
        wanted = {
            name: number for name, number in theirs.items() if number and name not in reserved
        }
        assert {prefix + member.name: member.value for member in ours} == wanted


def test_progress_leaves_the_unknown_unset() -> None:
    """Unknown is not zero."""
    fresh = convert.progress_message(RunProgress(training_id="x", mode=Mode.ONLINE))
    assert not fresh.HasField("loss")
    assert not fresh.HasField("mean_reward")
    assert not fresh.HasField("time_left")
    known = RunProgress(
        training_id="x", mode=Mode.SIMULATED, loss=0.0, mean_reward=0.5, time_left_s=1.5
    )
    message = convert.progress_message(known)
    assert message.HasField("loss")
    assert message.time_left.ToMilliseconds() == 1500
