"""Minutes in the store, which others write to, too: checked before anything is added up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import TypeVar

from google.protobuf.message import Message

from services.common.checks import MAX_COUNT, Checks
from services.common.errors import InvalidArgumentError
from services.common.latency_buckets import BUCKET_COUNT
from services.common.mesh_settings import MOST_TARGET
from services.common.state.minute_store import MINUTE_S
from tiercel.load_monitor.v1 import minutes_pb2 as pb
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb2

MAX_STORED_BYTES = 1024 * 1024
_MOST_TASKS = 1_000
_MOST_TIERS = 1_000
_MOST_SIZES = 100
_MOST_DEVICES = 100_000
"""Sums over numbers of devices are arrays of that length."""
_LONGEST_PROBLEM = 200
_LONGEST_DEADLINE_S = 86_400.0
_COUNTS = ("on_time_count", "late_count", "refused_count", "failed_count", "cancelled_count")

AnyMessage = TypeVar("AnyMessage", bound=Message)


def minute_of(payload: bytes) -> pb.Minute:
    """Returns a stored minute; raises ValueError if it is none."""
    minute = _parsed(pb.Minute, payload)
    with _checks() as bad:
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
    with _checks() as bad:
        _check_hindsight(bad, hindsight)
    return hindsight


def _parsed(kind: type[AnyMessage], payload: bytes) -> AnyMessage:
    if len(payload) > MAX_STORED_BYTES:
        raise ValueError(f"has {len(payload)} bytes (limit: {MAX_STORED_BYTES})")
    try:
        return kind.FromString(payload)
    except Exception as error:  # the parser's own type is no part of its interface
        raise ValueError(f"is no message: {error}") from error


@contextlib.contextmanager
def _checks() -> Iterator[Checks]:
    """Has ValueError raised for what is wrong: at the end, or once there is too much of it."""
    bad = Checks()
    try:
        yield bad
        bad.raise_if_any()
    except InvalidArgumentError as error:
        raise ValueError(error.message) from error


def _check_task(bad: Checks, field: str, task: pb.TaskMinute) -> None:
    bad.name(f"{field}.task", task.task)
    for name in _COUNTS:
        bad.count(f"{field}.{name}", getattr(task, name))
    bad.number(f"{field}.delivered_reward_sum", task.delivered_reward_sum, 0.0, MAX_COUNT)
    bad.number(f"{field}.smooth_answer_sum", task.smooth_answer_sum, 0.0, MAX_COUNT)
    bad.number(f"{field}.largest_quality", task.largest_quality, 0.0, 1.0)
    bad.number(f"{field}.target", task.target, 0.0, MOST_TARGET)
    if bad.items(f"{field}.answers", task.answers, _MOST_TIERS):
        for answers in task.answers:
            bad.name(f"{field}.answers.tier", answers.tier)
            bad.count(f"{field}.answers.answer_count", answers.answer_count)
    if task.HasField("latency"):
        _check_latency(bad, f"{field}.latency", task.latency)


def _check_latency(bad: Checks, field: str, told: state_pb2.TaskLatency) -> None:
    bad.duration(f"{field}.default_deadline", told.default_deadline, 0.0, _LONGEST_DEADLINE_S)
    bad.count(f"{field}.cut_off_count", told.cut_off_count)
    first, counts = told.first_bucket, told.answer_counts
    if bad.count(f"{field}.first_bucket", first, BUCKET_COUNT - 1):
        bad.items(f"{field}.answer_counts", counts, BUCKET_COUNT - first)
    if counts:
        bad.count(f"{field}.answer_counts", min(counts))
        bad.count(f"{field}.answer_counts", max(counts))


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
