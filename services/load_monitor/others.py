"""What a router is told of all others beside their load: how old that is, and their arrivals.

Sums are made once per picture, and each router's own part is taken from them.
"""

from __future__ import annotations

from typing import NamedTuple

from services.load_monitor.loads import Loads
from services.load_monitor.model import LONGEST_AGE_S, Picture, RouterReport


class Others(NamedTuple):
    """What is told of all routers but one.

    Args:
        age_s: How old their reports are, seconds; None if there is no other router.
        rate_rps: Their arrivals per second over about 0.2 seconds.
        rate_long_rps: The same over about 10 seconds; None if not all of them tell.
    """

    age_s: float | None
    rate_rps: float
    rate_long_rps: float | None


class _Part(NamedTuple):
    """One router's part of the sums, or all of them.

    Args:
        weight: What its age counts: the requests it has in flight, and one.
        weighted_s: Its age times that, seconds.
        rate_rps: Its arrivals per second over about 0.2 seconds.
        rate_long_rps: The same over about 10 seconds; 0 if it does not tell.
        untold_count: 1 if it does not tell that.
    """

    weight: float = 0.0
    weighted_s: float = 0.0
    rate_rps: float = 0.0
    rate_long_rps: float = 0.0
    untold_count: float = 0.0

    def without(self, other: _Part) -> _Part:
        """Returns what is left without a part; rounding leaves nothing below 0."""
        return _Part(*(max(0.0, ours - theirs) for ours, theirs in zip(self, other, strict=True)))


class OthersSums:
    """The sums of the newest picture.

    The older a report, the more of what it says is gone. So the age of all together is the mean by
    what each has in flight: an idle router says nothing that could be gone. The one beside it is
    for a mesh in which all are idle.
    """

    def __init__(self) -> None:
        self._picture: Picture | None = None
        self._parts: dict[str, _Part] = {}
        self._all = _Part()

    def of(self, picture: Picture, since_s: float, own: str | None) -> Others:
        """Returns what a router is told of a picture.

        Args:
            picture: The picture.
            since_s: How long ago it was taken, seconds.
            own: The router's name, if a report of its process is counted there.
        """
        if picture is not self._picture:
            self._picture = picture
            self._parts = {
                name: _part(report, load_LC)
                for name, (report, load_LC) in picture.loads.by_router.items()
            }
            columns = zip(_Part(), *self._parts.values(), strict=True)
            self._all = _Part(*(sum(column) for column in columns))
        rest = self._all if own is None else self._all.without(self._parts[own])
        age_s: float | None = None
        if rest.weight:
            age_s = min(rest.weighted_s / rest.weight + since_s, LONGEST_AGE_S)
        return Others(age_s, rest.rate_rps, None if rest.untold_count else rest.rate_long_rps)


def _part(report: RouterReport, load_LC: Loads) -> _Part:
    weight, long_rps = 1 + int(load_LC[0].sum()), report.arrival_rate_long_rps
    return _Part(
        weight,
        weight * report.age_s,
        report.arrival_rate_rps,
        long_rps or 0.0,
        float(long_rps is None),
    )
