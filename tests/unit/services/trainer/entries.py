"""Entries of the experience stream."""

from __future__ import annotations

from typing import Any

from router.features import SCHEMA
from services.common.log import get_logger
from services.trainer.mesh_view import MeshView
from tests.fakes.clock import FakeClock
from tiercel.common.v1 import common_pb2, experience_pb2
from tiercel.load_monitor.v1.system_state_pb2 import RouterLoad, SystemState

TASK = "t"
Key = tuple[str, int, int]


def key(sequence: int) -> Key:
    """Returns the key of a decision."""
    return ("r0", 7, sequence)


def unwatched() -> MeshView:
    """Returns the view of a mesh without a load monitor."""
    return MeshView(channel=None, candidates=(), clock=FakeClock(), log=get_logger("test"))


def seen_state(*routers: tuple[str, int]) -> SystemState:
    """Returns a system state with routers and one endpoint `e0` of tier small."""
    state = SystemState(routers=[RouterLoad(router_id=r, epoch=e) for r, e in routers])
    endpoint = common_pb2.Endpoint(endpoint="e0", tiers=[common_pb2.ServedTier(tier="small")])
    state.endpoints.add(endpoint=endpoint)
    return state


def decision(sequence: int, router_id: str = "r0", epoch: int = 7, stamp_s: int = 1) -> bytes:
    """Returns a decision as the stream holds it."""
    record = experience_pb2.DecisionRecord(
        router_id=router_id,
        epoch=epoch,
        sequence=sequence,
        task=TASK,
        feature_schema=SCHEMA,
        candidates=[common_pb2.Candidate(tier="small", endpoint="e0")],
        behavior_probability=1.0,
    )
    record.decide_time.seconds = stamp_s
    return experience_pb2.ExperienceEntry(decision=record).SerializeToString()


def outcome(sequence: int, router_id: str = "r0", epoch: int = 7) -> bytes:
    """Returns an outcome as the stream holds it."""
    record = experience_pb2.OutcomeRecord(
        router_id=router_id,
        epoch=epoch,
        sequence=sequence,
        status=common_pb2.OUTCOME_STATUS_ON_TIME,
    )
    return experience_pb2.ExperienceEntry(outcome=record).SerializeToString()


def process(router_id: str = "r0", epoch: int = 7, **told: Any) -> bytes:
    """Returns what a process tells of itself as the stream holds it."""
    record = experience_pb2.ProcessRecord(router_id=router_id, epoch=epoch, **told)
    record.tell_time.seconds = 1
    return experience_pb2.ExperienceEntry(process=record).SerializeToString()
