"""Times go into messages and come out unchanged."""

from __future__ import annotations

import math

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from services.common.times import (
    duration_of,
    from_ns,
    seconds_of,
    set_duration,
    set_signed_duration,
    timestamp_of,
    to_ns,
)


@given(st.floats(-1e6, 1e6))
def test_a_span_keeps_its_nanoseconds(span_s: float) -> None:
    """What comes back differs by less than a nanosecond."""
    assert seconds_of(duration_of(span_s)) == pytest.approx(span_s, abs=1e-9)


def test_a_negative_span_has_the_sign_in_both_fields() -> None:
    """Protobuf wants seconds and nanos of the same sign."""
    assert duration_of(-1.5) == Duration(seconds=-1, nanos=-500_000_000)


def test_a_span_written_in_place_is_never_negative() -> None:
    """A clock that jumped back gives a span of zero."""
    message = Duration(seconds=4)
    set_duration(message, -0.1)
    assert message == Duration()


def test_a_span_that_may_be_negative_is_written_in_place() -> None:
    """With the sign in both fields, as protobuf wants it."""
    message = Duration(seconds=4)
    set_signed_duration(message, -1.5)
    assert message == Duration(seconds=-1, nanos=-500_000_000)
    set_signed_duration(message, 1.5)
    assert message == Duration(seconds=1, nanos=500_000_000)


@pytest.mark.parametrize("span_s", [1e300, math.inf, -1e300, -math.inf, math.nan])
def test_a_span_beyond_the_message_is_cut(span_s: float) -> None:
    """No number that is computed anywhere can make an answer fail."""
    most_s = 315_576_000_000.0
    in_place = Duration()
    set_duration(in_place, span_s)
    assert 0.0 <= seconds_of(in_place) <= most_s
    assert -most_s <= seconds_of(duration_of(span_s)) <= most_s


@pytest.mark.parametrize("wall_ns", [2**90, -1])
def test_a_moment_beyond_the_message_is_cut(wall_ns: int) -> None:
    """Years 1970 to 9999 can be told."""
    assert 0 <= seconds_of(timestamp_of(wall_ns)) <= 253_402_300_799.0


def test_a_moment_keeps_every_nanosecond() -> None:
    """Wall times of today do not fit a float; they are never made one on the way in."""
    assert timestamp_of(1_790_000_000_123_456_789).ToNanoseconds() == 1_790_000_000_123_456_789


def test_seconds_and_nanoseconds_are_inverse() -> None:
    """A millisecond is a million nanoseconds, both ways."""
    assert (to_ns(0.001), from_ns(1_000_000)) == (1_000_000, 0.001)
