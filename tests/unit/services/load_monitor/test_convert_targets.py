"""Targets as messages: what a caller may ask."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from services.common.errors import InvalidArgumentError
from services.load_monitor.convert_targets import message_of_target, target_from_message
from services.load_monitor.targets import TargetOverride
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb

NOW_NS = 1_700_000_000_000_000_000


def test_a_target_has_who_and_when() -> None:
    """The end is the present and the time it was set for."""
    request = pb.SetTargetRequest(task="copa", target=0.999, reason="launch")
    request.duration.CopyFrom(Duration(seconds=60))
    found = target_from_message(request, "ops", NOW_NS)
    assert found == TargetOverride("copa", 0.999, NOW_NS, "ops", "launch", NOW_NS + 60 * 10**9)
    message = message_of_target(found)
    assert (message.task, message.target, message.set_by) == ("copa", 0.999, "ops")
    assert message.expire_time.ToNanoseconds() == NOW_NS + 60 * 10**9


def test_no_target_gives_the_task_back() -> None:
    """Zero is another thing: no target at all."""
    back = target_from_message(pb.SetTargetRequest(task="copa"), "ops", NOW_NS)
    none = target_from_message(pb.SetTargetRequest(task="copa", target=0.0), "ops", NOW_NS)
    assert (back.target, none.target) == (None, 0.0)
    assert not message_of_target(back).HasField("target")
    assert not message_of_target(back).HasField("expire_time")
    assert message_of_target(none).HasField("target")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"task": ""}, "task"),
        ({"task": "no such name"}, "task"),
        ({"target": 1.0}, "target"),
        ({"target": -0.1}, "target"),
        ({"target": float("nan")}, "target"),
        ({"reason": "x" * 201}, "reason"),
        ({"duration": Duration(nanos=1)}, "duration"),
        ({"duration": Duration(seconds=31 * 86400)}, "duration"),
        ({"target": None, "duration": Duration(seconds=5)}, "duration"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], field: str) -> None:
    """With what would be right."""
    wanted: dict[str, Any] = {"task": "copa", "target": 0.9, **fields}
    request = pb.SetTargetRequest(**wanted)
    with pytest.raises(InvalidArgumentError) as caught:
        target_from_message(request, "ops", NOW_NS)
    assert caught.value.field == field
