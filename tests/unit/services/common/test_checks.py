"""Ranges, lengths and counts: what is wrong is named with field and limit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.checks import Checks
from services.common.errors import MAX_VIOLATIONS, InvalidArgumentError

_INT64 = 2**63 - 1
Check = Callable[[Checks], object]


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (lambda c: c.number("f", 1.5, 0.0, 1.0), "p.f: is 1.5 (limit: 0 to 1)"),
        (lambda c: c.number("f", -0.1, 0.0, 9.0, "s"), "p.f: is -0.1 s (limit: 0 to 9 s)"),
        (lambda c: c.number("f", math.nan, 0.0, 1.0), "p.f: is nan (limit: 0 to 1)"),
        (lambda c: c.number("f", math.inf, 0.0, 1e300), "p.f: is inf (limit: 0 to 1e+300)"),
        (lambda c: c.count("f", _INT64), f"p.f: is {_INT64} (limit: 0 to {2**53})"),
        (lambda c: c.count("f", 0, 5, 1), "p.f: is 0 (limit: 1 to 5)"),
        (lambda c: c.text("f", "abc", 2), "p.f: has 3 characters (limit: 0 to 2 characters)"),
        (lambda c: c.text("f", "", 2, 1), "p.f: is empty (limit: 1 to 2 characters)"),
        (lambda c: c.name("f", "Ä"), "p.f: has other characters"),
        (lambda c: c.name("f", "x" * 65), "p.f: has 65 characters (limit: 1 to 64 characters)"),
        (lambda c: c.items("f", [1, 2], 1), "p.f: has 2 entries (limit: 0 to 1 entries)"),
        (lambda c: c.duration("f", Duration(seconds=_INT64), 0, 9), "p.f: is 9.22337e+18 s"),
        (lambda c: c.duration("f", Duration(seconds=-_INT64), 0, 9), "p.f: is -9.22337e+18 s"),
        (lambda c: c.duration("f", Duration(nanos=2**31 - 1), 0, 9), "p.f: is no valid Duration"),
        (lambda c: c.duration("f", Duration(seconds=1, nanos=-1), 0, 9), "is no valid Duration"),
        (lambda c: c.moment("f", Timestamp(seconds=_INT64)), "p.f: is 9.22337e+18 s since 1970"),
        (lambda c: c.moment("f", Timestamp(seconds=-1)), "p.f: is -1 s since 1970"),
        (lambda c: c.moment("f", Timestamp(nanos=-1)), "p.f: is no valid Timestamp"),
    ],
)
def test_what_is_out_of_range_is_named(check: Check, text: str) -> None:
    """The answer holds the field's path, what was sent and what would be right."""
    checks = Checks("p.")
    check(checks)
    with pytest.raises(InvalidArgumentError) as caught:
        checks.raise_if_any()
    assert text in caught.value.message


def test_what_is_in_range_passes() -> None:
    """The ends of a range belong to it."""
    checks = Checks()
    assert checks.number("f", 1.0, 0.0, 1.0)
    assert checks.count("f", 2**53)
    assert checks.text("f", "ab", 2)
    assert checks.name("f", "a-b_0")
    assert checks.name("f", "", optional=True)
    assert checks.items("f", [1], 1)
    assert checks.duration("f", Duration(seconds=9), 0.0, 9.0) == 9.0
    assert checks.moment("f", Timestamp(seconds=9)) == 9.0
    checks.raise_if_any()


def test_checking_stops_at_the_most_violations() -> None:
    """A list of 200,000 wrong entries is walked for twenty of them."""
    checks = Checks()
    tiers = iter([""] * 200_000)
    with pytest.raises(InvalidArgumentError):
        sum(checks.text("tier", tier, 64, 1) for tier in tiers)
    assert len(list(tiers)) == 200_000 - MAX_VIOLATIONS
