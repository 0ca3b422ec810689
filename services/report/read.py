"""Past minutes, as a load monitor tells them."""

from __future__ import annotations

from typing import Any

from services.common.times import seconds_of, timestamp_of, to_ns
from services.local.calls import TIMEOUT_S, connected
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb
from tiercel.load_monitor.v1 import minutes_pb2


def read_minutes(address: str, start_s: float, end_s: float) -> list[minutes_pb2.Minute]:
    """Returns the minutes that began in [start_s, end_s), seconds since 1970.

    Raises:
        CommandError: The monitor does not answer.
    """
    found: list[minutes_pb2.Minute] = []
    request = pb.ListMinutesRequest(
        start_time=timestamp_of(to_ns(start_s)), end_time=timestamp_of(to_ns(end_s))
    )
    with connected("load monitor", address) as stub:
        while True:
            reply: Any = stub.ListMinutes(request, timeout=TIMEOUT_S)
            found += reply.minutes
            goes_on = reply.next_start_time
            if not reply.HasField("next_start_time") or (
                seconds_of(goes_on) <= seconds_of(request.start_time)
            ):
                return found
            request.start_time.CopyFrom(goes_on)
