"""Messages to dataclasses: every bad record is refused with a reason, never a crash."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from router.features import FEATURE_COUNT, FEATURES, SCHEMA
from services.common.state.policy_store import StoredPolicy
from services.trainer import convert
from services.trainer.model import Mode, PolicyRecord, RunProgress, RunState, Stage
from tests.fakes.virtual_time import run_virtual
from tests.unit.services.router_inference.parts import TASKS, make_rig
from tiercel.common.v1 import common_pb2, experience_pb2
from tiercel.trainer.v1 import trainer_service_pb2 as pb
from trainer.learning.online.joining import DecisionRecord, Ending, OutcomeRecord

NOW_S = 1_700_000_000.0


def features(**values: float) -> NDArray[Any]:
    """Returns features of 2 candidates: the middle of each range, the first row changed."""
    x_CF = np.array([[0.5 * (f.low + f.high) for f in FEATURES]] * 2, dtype="<f4")
    for name, value in values.items():
        x_CF[0, [f.name for f in FEATURES].index(name)] = value
    return x_CF


def read(payload: bytes) -> convert.Experience:
    """Reads an entry of a mesh with task `t`."""
    return convert.experience_from(payload, now_s=NOW_S, tasks={"t"})


def stamped(seconds: int) -> experience_pb2.DecisionRecord:
    """Returns a sound decision made at another time."""
    record = decision()
    record.decide_time.seconds = seconds
    return record


def decision(**changes: Any) -> experience_pb2.DecisionRecord:
    """Returns a sound decision of 2 candidates with fields changed."""
    fields: dict[str, Any] = {
        "router_id": "r",
        "epoch": 5,
        "sequence": 7,
        "request_id": "q",
        "task": "t",
        "feature_schema": SCHEMA,
        "candidates": [common_pb2.Candidate(tier=t, endpoint="e") for t in ("a", "b")],
        "features": features().tobytes(),
        "feature_count": FEATURE_COUNT,
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
    record, stamp_s, candidates = read(entry(decision()))
    assert (stamp_s, candidates) == (1.5, (("a", "e"), ("b", "e")))
    assert isinstance(record, DecisionRecord)
    assert record.key == ("r", 5, 7)
    assert (record.time_s, record.slack_s, record.action) == (1.5, -0.25, 1)
    assert record.features_CF is not None
    np.testing.assert_array_equal(record.features_CF, features())


@pytest.mark.parametrize(
    ("status", "ending"),
    [
        ("ON_TIME", Ending.ANSWERED),
        ("LATE", Ending.ANSWERED),
        ("REFUSED", Ending.REFUSED),
        ("FAILED", Ending.REFUSED),
        ("CANCELLED", Ending.CANCELLED),
        ("LEASE_EXPIRED", Ending.CANCELLED),
        ("INVALID", Ending.CANCELLED),
    ],
)
def test_outcome(status: str, ending: Ending) -> None:
    """Each status has its ending."""
    record = experience_pb2.OutcomeRecord(
        router_id="r", epoch=1, sequence=2, reward=0.25,
        status=common_pb2.OutcomeStatus.Value(f"OUTCOME_STATUS_{status}"),
    )  # fmt: skip
    assert read(entry(record)).record == OutcomeRecord(("r", 1, 2), 0.25, ending)


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
        decision(behavior_probability=5e-324),
        decision(router_id="r" * 129),
        decision(epoch=2**63 - 1),
        decision(sequence=2**63 - 1),
        decision(task="nobody's"),
        decision(feature_schema="another"),
        decision(candidates=[common_pb2.Candidate(tier="a", endpoint="e")] * 2),
        decision(candidates=[], features=b"", feature_count=0, action=0),
        decision(
            candidates=[common_pb2.Candidate(tier="a", endpoint=str(n)) for n in range(20_000)],
            features=b"",
            feature_count=0,
        ),
        decision(candidates=[common_pb2.Candidate(tier="t" * 999, endpoint="e" * 999)] * 30),
        *(
            decision(features=features(quality=value).tobytes())
            for value in (7e4, -7e4, 1.1, -0.1, math.inf, math.nan)
        ),
        stamped(round(NOW_S) + 6),
        stamped(round(NOW_S) + 365 * 86_400),
        stamped(2**62),
        stamped(-1),
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
        read(entry(bad))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused(payload: bytes) -> None:
    """Arbitrary bytes give a record or BadRecordError, nothing else."""
    try:
        read(payload)
    except convert.BadRecordError:
        return


def test_policy_round_trip() -> None:
    """What the store gives back is what went in."""
    record = PolicyRecord(
        policy="dqn", version="v", stage=Stage.REJECTED, feature_schema="s", rejection="r",
        publish_ns=1_700_000_000_123_456_789, transition_count=9, description="d",
        scores={"performance": 0.5},
    )  # fmt: skip
    stored = StoredPolicy("dqn", "v", convert.encode_policy(record))
    assert convert.decode_policy(stored) == record


def policy_info(**changes: Any) -> pb.PolicyInfo:
    """Returns a sound policy as it is stored, with fields changed."""
    fields = {"policy": "dqn", "policy_version": "v", "stage": pb.POLICY_STAGE_PROPOSED}
    return pb.PolicyInfo(**{**fields, **changes})


@pytest.mark.parametrize(
    "info",
    [
        b"\xff\xff\xff",
        b"",
        policy_info(stage=99),
        policy_info(stage=pb.POLICY_STAGE_ACTIVE),
        policy_info(stage=pb.POLICY_STAGE_UNSPECIFIED),
        policy_info(policy="static-small"),
        policy_info(policy_version="another"),
        policy_info(transition_count=-1),
        policy_info(description="d" * 5_000),
        policy_info(scores={"performance": math.nan}),
        policy_info(scores={str(n): 0.5 for n in range(100)}),
        policy_info(scores={"s" * 99 + str(n): math.inf for n in range(30)}),
        policy_info(publish_time=Timestamp(seconds=2**62)),
        policy_info(publish_time=Timestamp(nanos=-1)),
    ],
)
def test_a_stored_policy_that_is_none_of_ours_is_refused(info: Any) -> None:
    """Garbage in the store is a BadRecordError, nothing else."""
    blob = info if isinstance(info, bytes) else info.SerializeToString()
    with pytest.raises(convert.BadRecordError):
        convert.decode_policy(StoredPolicy("dqn", "v", blob))


def test_enums_match_the_contract() -> None:
    """Our numbers are the contract's."""
    for ours, prefix, theirs in (
        (Stage, "POLICY_STAGE_", pb.PolicyStage),
        (Mode, "TRAINING_MODE_", pb.TrainingMode),
        (RunState, "TRAINING_STATE_", pb.TrainingState),
    ):
        wanted = {name: number for name, number in theirs.items() if number}
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


@pytest.mark.parametrize("policy", ["greedy", "random", "price", "fluid"])
@pytest.mark.parametrize("load", [1, 60])
def test_what_a_router_writes_is_taken(policy: str, load: int) -> None:
    """Every record of a router passes every check, under load as well."""

    async def main() -> tuple[list[bytes], float]:
        rig = make_rig(policy=policy, endpoint_count=3, features_always=True)
        jobs = [rig.job(task=task.name) for task in TASKS for _ in range(load)]
        await asyncio.gather(*(rig.answer(job) for job in jobs), return_exceptions=True)
        entries = await rig.records()
        return [each.SerializeToString() for each in entries], rig.clock.wall_ns() / 1e9

    payloads, now_s = run_virtual(main())
    tasks = {task.name for task in TASKS}
    read_ones = [convert.experience_from(each, now_s=now_s, tasks=tasks) for each in payloads]
    decisions = [each.record for each in read_ones if isinstance(each.record, DecisionRecord)]
    assert len(decisions) * 2 == len(payloads) > 0
    assert all(each.features_CF is not None for each in decisions)


@pytest.mark.parametrize("status", [s for s in common_pb2.OutcomeStatus.values() if s])
def test_every_status_of_the_contract_is_known(status: Any) -> None:
    """None is refused for being new."""
    assert read(entry(outcome(status=status)))


def test_a_step_at_an_impossible_time_is_a_bad_record() -> None:
    """What stands in the store may be damaged; the library's own conversion would raise."""
    info = pb.PolicyInfo(policy="dqn", policy_version="v")
    step = info.steps.add(stage=pb.POLICY_STAGE_CANARY, verdict=pb.RolloutVerdict.values()[1])
    step.step_time.seconds = 2**53
    with pytest.raises(convert.BadRecordError, match="steps"):
        convert.decode_policy(StoredPolicy("dqn", "v", info.SerializeToString()))
