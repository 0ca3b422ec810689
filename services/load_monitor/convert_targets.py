"""Targets set while the mesh runs, as messages."""

from __future__ import annotations

from collections.abc import Iterable

from services.common.checks import Checks
from services.common.mesh_settings import MOST_TARGET
from services.common.times import timestamp_of
from services.load_monitor.targets import (
    MAX_CALLER_CHARACTERS,
    MAX_REASON_CHARACTERS,
    TargetOverride,
)
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as service_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb2

_SHORTEST_S, _LONGEST_S = 1.0, 30 * 24 * 3600.0
_NS_PER_S = 1_000_000_000


def target_from_message(
    request: service_pb2.SetTargetRequest, caller: str, now_ns: int
) -> TargetOverride:
    """Returns a target that is to be set.

    Args:
        request: What a caller asked.
        caller: Who it is.
        now_ns: The present, wall clock, nanoseconds since 1970.

    Raises:
        InvalidArgumentError: Naming what is wrong.
    """
    bad, has_target = Checks(), request.HasField("target")
    bad.name("task", request.task)
    bad.text("reason", request.reason, MAX_REASON_CHARACTERS)
    if has_target:
        bad.number("target", request.target, 0.0, MOST_TARGET)
    expire_ns = 0
    if request.HasField("duration"):
        limit = "only with a target"
        if bad.require(has_target, "duration", "is set without a target", limit):
            span_s = bad.duration("duration", request.duration, _SHORTEST_S, _LONGEST_S)
            expire_ns = now_ns + round(_NS_PER_S * span_s)
    bad.raise_if_any()
    return TargetOverride(
        request.task,
        request.target if has_target else None,
        now_ns,
        caller[:MAX_CALLER_CHARACTERS],
        request.reason,
        expire_ns,
    )


def message_of_targets(targets: Iterable[TargetOverride]) -> state_pb2.TargetOverrides:
    """Returns targets as routers and clients are told them."""
    return state_pb2.TargetOverrides(overrides=map(message_of_target, targets))


def message_of_target(override: TargetOverride) -> state_pb2.TargetOverride:
    """Returns one target."""
    expire_ns = override.expire_wall_ns
    return state_pb2.TargetOverride(
        task=override.task,
        target=override.target,
        set_time=timestamp_of(override.set_wall_ns),
        set_by=override.set_by,
        reason=override.reason,
        expire_time=timestamp_of(expire_ns) if expire_ns else None,
    )
