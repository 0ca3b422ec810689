"""Entries of the experience stream."""

from __future__ import annotations

from tiercel.common.v1 import common_pb2, experience_pb2

Key = tuple[str, int, int]


def key(sequence: int) -> Key:
    """Returns the key of a decision."""
    return ("r0", 7, sequence)


def decision(sequence: int) -> bytes:
    """Returns a decision as the stream holds it."""
    record = experience_pb2.DecisionRecord(
        router_id="r0",
        epoch=7,
        sequence=sequence,
        candidates=[common_pb2.Candidate(tier="small", endpoint="e0")],
        behavior_probability=1.0,
    )
    return experience_pb2.ExperienceEntry(decision=record).SerializeToString()


def outcome(sequence: int) -> bytes:
    """Returns an outcome as the stream holds it."""
    record = experience_pb2.OutcomeRecord(
        router_id="r0", epoch=7, sequence=sequence, status=common_pb2.OUTCOME_STATUS_ON_TIME
    )
    return experience_pb2.ExperienceEntry(outcome=record).SerializeToString()
