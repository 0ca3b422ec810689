"""How latency profiles stand in a mesh, by what its routers say: their age, and how far off."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from router.profile_error import RangeError
from services.common.times import seconds_of
from tiercel.common.v1 import common_pb2

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class ProfileFacts:
    """How one profile stands.

    Attributes:
        profile: Its name.
        source: Where its numbers come from: published, measured or assumed.
        method: How it was measured; empty if its file does not say.
        measured_s: When, seconds since 1970; None if its file does not say. Where routers do not
            agree, the earliest.
        errors: How far it is off, over all routers that said so.
    """

    profile: str
    source: str
    method: str
    measured_s: float | None
    errors: tuple[RangeError, ...]


def source_and_age(source: str, measured_s: float | None, now_s: float) -> str:
    """Returns in words where a profile's numbers come from and how old they are.

    Args:
        source: Where from.
        measured_s: When it was measured, seconds since 1970; None if nobody said.
        now_s: The present, likewise.
    """
    if measured_s is None:
        return f"{source}, age unknown"
    return f"{source} {age_text(now_s - measured_s)} ago"


def age_text(age_s: float) -> str:
    """Returns a span in its largest unit: days, hours or minutes."""
    for unit_s, unit in ((_DAY_S, "day"), (3600.0, "hour")):
        count = int(age_s / unit_s)
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    count = max(0, int(age_s / 60.0))
    return f"{count} minute{'' if count == 1 else 's'}"


def profile_facts(told: Iterable[common_pb2.ProfileState]) -> list[ProfileFacts]:
    """Returns how profiles stand, by name, from what one router or several say of them."""
    by_name: dict[str, list[common_pb2.ProfileState]] = {}
    for each in told:
        by_name.setdefault(each.profile, []).append(each)
    return [_facts(name, states) for name, states in sorted(by_name.items())]


def _facts(name: str, states: list[common_pb2.ProfileState]) -> ProfileFacts:
    moments = [seconds_of(s.measured_time) for s in states if s.HasField("measured_time")]
    sums: dict[tuple[str, str], tuple[float, float]] = {}
    for state in states:
        for each in state.errors:
            count, log_sum = sums.get((each.tier, each.range), (0.0, 0.0))
            log = math.log1p(max(each.error, -0.999))
            sums[each.tier, each.range] = (
                count + each.compared_count,
                log_sum + each.compared_count * log,
            )
    return ProfileFacts(
        profile=name,
        source=states[0].source,
        method=next((state.method for state in states if state.method), ""),
        measured_s=min(moments, default=None),
        errors=tuple(
            RangeError(tier, text, math.expm1(log_sum / count), count)
            for (tier, text), (count, log_sum) in sums.items()
            if count
        ),
    )


def off_text(error: RangeError) -> str:
    """Returns in words how far a tier is off, and where."""
    where = f"{error.tier}, {error.range}" if error.range else error.tier
    return (
        f"{where}: predicted {1.0 + error.error:.2f} times what was observed "
        f"({error.answers:.0f} answers)"
    )


def profile_json(facts: ProfileFacts) -> dict[str, Any]:
    """What JSON shows of a profile."""
    return {
        "profile": facts.profile,
        "source": facts.source,
        "method": facts.method,
        "measured_s": facts.measured_s,
        "errors": [
            {
                "tier": e.tier,
                "range": e.range,
                "error": round(e.error, 4),
                "count": round(e.answers),
            }
            for e in facts.errors
        ],
    }
