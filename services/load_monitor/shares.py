"""How much of the traffic comes through each router: how large its home is (`router.home`)."""

from __future__ import annotations

import math

from router.home import Share
from services.load_monitor.model import Picture

TAU_S = 10.0
"""Rates are weighted over about this time: homes that moved with every burst would be nobody's."""
FLOOR = 0.05
"""What every router counts for at least, as a part of an equal share: it may have to serve soon."""


class Shares:
    """Stretches of all devices, one for each router, in the order of their names."""

    def __init__(self) -> None:
        self._picture: Picture | None = None
        self._rate_rps: dict[str, float] = {}
        self._shares: dict[str, Share] = {}

    def of(self, picture: Picture) -> dict[str, Share]:
        """Returns the stretch of every router of a picture by name; each picture counts once."""
        if picture is self._picture:
            return self._shares
        before, self._picture = self._picture, picture
        elapsed_s = 0.0
        if before is not None:
            elapsed_s = max(0.0, (picture.publish_wall_ns - before.publish_wall_ns) / 1e9)
        kept = math.exp(-elapsed_s / TAU_S)
        now_rps = {report.router_id: report.arrival_rate_rps for report in picture.routers}
        # Of a new one nothing is known yet: a rate over 0.2 s may be anything.
        known = [
            rate for name, rate in self._rate_rps.items() if name in now_rps
        ] or now_rps.values()
        usual_rps = sum(known) / max(1, len(known))
        self._rate_rps = {
            name: kept * self._rate_rps.get(name, usual_rps) + (1.0 - kept) * rate_rps
            for name, rate_rps in now_rps.items()
        }
        self._shares = _in_a_row(self._rate_rps)
        return self._shares


def _in_a_row(rate_rps: dict[str, float]) -> dict[str, Share]:
    """Returns stretches that follow each other, as long as the rates are high."""
    count, total_rps = len(rate_rps), sum(rate_rps.values())
    shares: dict[str, Share] = {}
    start = 0.0
    for name, rate in rate_rps.items():
        part = rate / total_rps if total_rps > 0.0 else 1.0 / count
        end = min(1.0, start + (part + FLOOR / count) / (1.0 + FLOOR))
        shares[name] = Share(start, end)
        start = end
    return shares
