"""Collects the routers' reports: who is there, what is under way, how fast requests arrive."""

from __future__ import annotations

import math
from dataclasses import dataclass

from router.traffic import LONG_TAU_S
from services.common.clock import Clock
from services.common.errors import ResourceExhaustedError
from services.load_monitor.model import RouterReport


@dataclass(slots=True)
class _Router:
    report: RouterReport
    heard_s: float


class Aggregator:
    """The last report of every router.

    The arrival rate over about 0.2 seconds is the sum of what the routers report. The one over 10
    seconds follows that sum exponentially, so that traffic that moves from one router to another
    does not look like a change.

    Args:
        clock: Tells when reports came.
        silence_s: A router silent for longer is forgotten, seconds.
        max_routers: Most routers kept.
    """

    def __init__(self, *, clock: Clock, silence_s: float, max_routers: int) -> None:
        self._clock = clock
        self._silence_s = silence_s
        self._max_routers = max_routers
        self._routers: dict[str, _Router] = {}
        self._long_rps = 0.0
        self._updated_s: float | None = None

    def take(self, report: RouterReport) -> bool:
        """Takes a report in; returns False if it is older than what is known already.

        Raises:
            ResourceExhaustedError: It is from a new router and there are too many.
        """
        known = self._routers.get(report.router_id)
        if known is not None:
            last = known.report
            # A larger epoch is a restarted process: its sequence starts anew. A smaller one is the
            # process before it, whose late report must not bring its load back.
            if (report.epoch, report.sequence) <= (last.epoch, last.sequence):
                return False
        elif len(self._routers) >= self._max_routers:
            raise ResourceExhaustedError(
                "TOO_MANY_ROUTERS", f"{self._max_routers} routers", f"{len(self._routers)} routers"
            )
        self._update_long()
        self._routers[report.router_id] = _Router(report, self._clock.monotonic_s())
        if self._updated_s is None:
            # The estimate starts with the first thing seen; from zero it would need 10 s to arrive.
            self._long_rps = self.arrival_rate_short_rps
            self._updated_s = self._clock.monotonic_s()
        return True

    def leave(self, router_id: str, epoch: int) -> None:
        """Forgets a router that said good-bye, unless a newer process has taken its name."""
        known = self._routers.get(router_id)
        if known is not None and known.report.epoch == epoch:
            self._update_long()
            del self._routers[router_id]

    def expire(self) -> list[str]:
        """Forgets silent routers and returns their names."""
        self._update_long()
        oldest_s = self._clock.monotonic_s() - self._silence_s
        silent = [name for name, router in self._routers.items() if router.heard_s < oldest_s]
        for name in silent:
            del self._routers[name]
        return silent

    @property
    def reports(self) -> tuple[RouterReport, ...]:
        """The last report of every router, in order of name."""
        return tuple(self._routers[name].report for name in sorted(self._routers))

    @property
    def arrival_rate_short_rps(self) -> float:
        """Mesh-wide arrivals per second over about 0.2 seconds."""
        return math.fsum(router.report.arrival_rate_rps for router in self._routers.values())

    @property
    def arrival_rate_long_rps(self) -> float:
        """Mesh-wide arrivals per second over about 10 seconds, as of the last `expire`."""
        return self._long_rps

    def in_flight_at(self, endpoint: str) -> int:
        """Returns how many requests the routers have under way at an endpoint."""
        return sum(
            count
            for router in self._routers.values()
            for _tier, name, count in router.report.in_flight
            if name == endpoint
        )

    def _update_long(self) -> None:
        if self._updated_s is None:
            return
        now_s = self._clock.monotonic_s()
        share = -math.expm1(-(now_s - self._updated_s) / LONG_TAU_S)
        self._long_rps += share * (self.arrival_rate_short_rps - self._long_rps)
        self._updated_s = now_s
