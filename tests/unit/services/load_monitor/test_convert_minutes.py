"""Minutes in the store: what is wrong is said, and nothing of it is added up."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.latency_buckets import BUCKET_COUNT
from services.load_monitor.convert_minutes import MAX_STORED_BYTES, hindsight_of, minute_of
from services.load_monitor.tally import Tally
from tests.unit.services.load_monitor.test_tally import START_S, counted, seen
from tiercel.load_monitor.v1 import minutes_pb2 as pb
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb2


def hindsight(*points: tuple[int, float], **fields: Any) -> pb.Hindsight:
    """Returns one with so many devices for the largest tier alone."""
    found = pb.Hindsight(**fields)
    for count, performance in points:
        found.static_large.add(device_count=count, performance=performance)
    return found


def task(**fields: Any) -> pb.Minute:
    """Returns a minute with one task."""
    minute = pb.Minute(tasks=[pb.TaskMinute(task="sort", **fields)])
    minute.start_time.seconds = START_S
    return minute


def test_what_a_monitor_writes_can_be_read() -> None:
    """And what a trainer adds."""
    tally = Tally(START_S * 10**9)
    tally.take(seen(counted("r", START_S + 1, 10)), START_S + 2.0)
    minute = tally.take(seen(counted("r", START_S + 1, 20)), START_S + 60.0)
    assert minute is not None
    minute.hindsight.CopyFrom(hindsight((1, 0.5), (2, 1.0)))
    assert minute_of(minute.SerializeToString()) == minute
    assert hindsight_of(minute.hindsight.SerializeToString()) == minute.hindsight


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (hindsight((2**31 - 1, 0.5)), "device_count: is 2147483647"),
        (hindsight((2, 0.5), (1, 0.6)), "does not ascend"),
        (hindsight((0, 0.5)), "device_count: is 0"),
        (hindsight((1, float("nan"))), "performance: is nan"),
        (hindsight(*((count, 0.5) for count in range(1, 102))), "has 101 entries"),
        (hindsight(tasks=[pb.TaskHindsight(task="a", recorded_count=-1)]), "recorded_count: is -1"),
        (
            hindsight(tasks=[pb.TaskHindsight(task="a", bound_sum=float("inf"))]),
            "bound_sum: is inf",
        ),
        (hindsight(tasks=[pb.TaskHindsight(task="<b>")]), "has other characters"),
        (hindsight(problem="x" * 201), "has 201 characters"),
    ],
)
def test_what_a_trainer_would_not_write_is_refused(found: pb.Hindsight, said: str) -> None:
    """A number of devices is the length of an array; others are added up."""
    with pytest.raises(ValueError, match=said):
        hindsight_of(found.SerializeToString())
    minute = task()
    minute.hindsight.CopyFrom(found)
    with pytest.raises(ValueError, match=said):
        minute_of(minute.SerializeToString())


@pytest.mark.parametrize(
    ("minute", "said"),
    [
        (pb.Minute(device_count=-1), "device_count: is -1"),
        (task(on_time_count=-1), "on_time_count: is -1"),
        (task(delivered_reward_sum=float("nan")), "delivered_reward_sum: is nan"),
        (task(answers=[state_pb2.TierAnswers(tier="s", answer_count=-9)]), "answer_count: is -9"),
        (task(latency=state_pb2.TaskLatency(first_bucket=BUCKET_COUNT)), "first_bucket"),
        (
            task(latency=state_pb2.TaskLatency(first_bucket=9, answer_counts=[1] * BUCKET_COUNT)),
            "answer_counts: has",
        ),
    ],
)
def test_what_a_monitor_would_not_write_is_refused(minute: pb.Minute, said: str) -> None:
    """It would fail whoever adds minutes up."""
    with pytest.raises(ValueError, match=said):
        minute_of(minute.SerializeToString())


@pytest.mark.parametrize("payload", [b"\xff" * 20, b"x" * (MAX_STORED_BYTES + 1)])
def test_bytes_that_are_none_are_refused(payload: bytes) -> None:
    """However many."""
    with pytest.raises(ValueError, match=r"is no message|has \d+ bytes"):
        minute_of(payload)
