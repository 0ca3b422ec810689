"""Minutes in the store, which others write to, too: checked before anything is added up."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

from google.protobuf.message import Message

from services.common.checks import MAX_COUNT, Checks, checks_of_stored
from services.common.mesh_settings import MOST_TARGET
from services.common.state.minute_store import MINUTE_S
from services.load_monitor.convert import check_latency, check_outcomes
from tiercel.load_monitor.v1 import minutes_pb2 as pb

MAX_STORED_BYTES = 1024 * 1024
_MOST_TASKS = 1_000
_MOST_TIERS = 1_000
_MOST_SIZES = 100
_MOST_DEVICES = 100_000
"""Sums over numbers of devices are arrays of that length."""
_LONGEST_PROBLEM = 200

AnyMessage = TypeVar("AnyMessage", bound=Message)


def minute_of(payload: bytes) -> pb.Minute:
    """Returns a stored minute; raises ValueError if it is none."""
    minute = _parsed(pb.Minute, payload)
    with checks_of_stored(ValueError) as bad:
        start_s = bad.moment("start_time", minute.start_time)
        bad.require(start_s % MINUTE_S == 0, "start_time", "begins no minute")
        bad.duration("observed", minute.observed, 0.0, MINUTE_S)
        bad.count("device_count", minute.device_count, _MOST_DEVICES)
        if bad.items("tasks", minute.tasks, _MOST_TASKS):
            for index, task in enumerate(minute.tasks):
                _check_task(bad, f"tasks[{index}]", task)
        if minute.HasField("hindsight"):
            _check_hindsight(bad, minute.hindsight)
    return minute


def hindsight_of(payload: bytes) -> pb.Hindsight:
    """Returns what a trainer has stored of a minute; raises ValueError if it is nothing of it."""
    hindsight = _parsed(pb.Hindsight, payload)
    with checks_of_stored(ValueError) as bad:
        _check_hindsight(bad, hindsight)
    return hindsight


def _parsed(kind: type[AnyMessage], payload: bytes) -> AnyMessage:
    if len(payload) > MAX_STORED_BYTES:
        raise ValueError(f"has {len(payload)} bytes (limit: {MAX_STORED_BYTES})")
    try:
        return kind.FromString(payload)
    except Exception as error:  # the parser's own type is no part of its interface
        raise ValueError(f"is no message: {error}") from error


def _check_task(bad: Checks, field: str, task: pb.TaskMinute) -> None:
    check_outcomes(bad, field, task, _MOST_TIERS)
    bad.number(f"{field}.largest_quality", task.largest_quality, 0.0, 1.0)
    bad.number(f"{field}.target", task.target, 0.0, MOST_TARGET)
    if task.HasField("latency"):
        check_latency(bad, f"{field}.latency", task.latency)


def _check_hindsight(bad: Checks, hindsight: pb.Hindsight) -> None:
    bad.text("hindsight.problem", hindsight.problem, _LONGEST_PROBLEM)
    bad.count("hindsight.device_count", hindsight.device_count, _MOST_DEVICES)
    if bad.items("hindsight.tasks", hindsight.tasks, _MOST_TASKS):
        for index, task in enumerate(hindsight.tasks):
            field = f"hindsight.tasks[{index}]"
            bad.name(f"{field}.task", task.task)
            bad.count(f"{field}.recorded_count", task.recorded_count)
            bad.number(f"{field}.bound_sum", task.bound_sum, 0.0, MAX_COUNT)
            bad.number(f"{field}.delivered_reward_sum", task.delivered_reward_sum, 0.0, MAX_COUNT)
    points = hindsight.static_large
    if bad.items("hindsight.static_large", points, _MOST_SIZES):
        for each in points:
            bad.count("hindsight.static_large.device_count", each.device_count, _MOST_DEVICES, 1)
            bad.number("hindsight.static_large.performance", each.performance, 0.0, 1.0)
        rises = all(one.device_count < other.device_count for one, other in pairwise(points))
        bad.require(rises, "hindsight.static_large", "does not ascend")
