"""Spans and moments of time as people write them."""

from __future__ import annotations

import datetime
import re

from services.common.checks import MAX_WALL_S
from services.local.errors import InputError

DAY_S = 86400.0
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY_S}


def span_s(text: str, option: str, most_s: float) -> float:
    """Returns a span such as 90s, 10m, 2h or 1d in seconds.

    Args:
        text: What was written.
        option: Named in errors.
        most_s: Longest span, whole days.

    Raises:
        InputError: It is none, or not from 1 second to `most_s`.
    """
    match = _SPAN.fullmatch(text)
    if match is None:
        raise InputError(f"{option}: expected a time such as 90s, 10m, 2h or 1d, got {text!r}")
    found_s = float(match[1]) * _UNIT_S[match[2]]
    if not 1.0 <= found_s <= most_s:
        raise InputError(f"{option}: must be 1s to {most_s / DAY_S:.0f}d, got {text}")
    return found_s


def moment_s(text: str, option: str, now_s: float) -> float:
    """Returns a moment, in UTC unless it has an offset, in seconds since 1970.

    Args:
        text: Date and time by ISO 8601, or a time of today.
        option: Named in errors.
        now_s: Seconds since 1970.

    Raises:
        InputError: It is none, or not of the years 1970 to 9999.
    """
    today = datetime.datetime.fromtimestamp(now_s, datetime.UTC).date().isoformat()
    try:
        found = datetime.datetime.fromisoformat(f"{today}T{text}" if len(text) < 6 else text)
    except ValueError:
        raise InputError(
            f"{option}: expected a time such as 14:30 or 2026-11-29T14:30 (UTC), got {text!r}"
        ) from None
    if found.tzinfo is None:
        found = found.replace(tzinfo=datetime.UTC)
    found_s = found.timestamp()
    if not 0.0 <= found_s <= MAX_WALL_S:
        raise InputError(f"{option}: must be in the years 1970 to 9999, got {text!r}")
    return found_s
