"""Seconds and nanoseconds as protobuf's Duration and Timestamp, and back."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_NS_PER_S = 1_000_000_000


def to_ns(span_s: float) -> int:
    """Returns seconds as whole nanoseconds."""
    return round(span_s * _NS_PER_S)


def from_ns(span_ns: int) -> float:
    """Returns nanoseconds as seconds."""
    return span_ns / _NS_PER_S


def seconds_of(message: Duration | Timestamp) -> float:
    """Returns a message's span, or its moment since 1970, in seconds."""
    return message.ToNanoseconds() / _NS_PER_S


def duration_of(span_s: float) -> Duration:
    """Returns the message of a span in seconds, which may be negative."""
    message = Duration()
    message.FromNanoseconds(to_ns(span_s))
    return message


def set_duration(message: Duration, span_s: float) -> None:
    """Writes a span in place, 0 for a negative one: half the time of building and copying one."""
    message.FromNanoseconds(max(0, to_ns(span_s)))


def timestamp_of(wall_ns: int) -> Timestamp:
    """Returns the message of a moment in nanoseconds since 1970."""
    message = Timestamp()
    message.FromNanoseconds(wall_ns)
    return message
