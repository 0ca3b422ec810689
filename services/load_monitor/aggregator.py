"""Collects the routers' reports: who is there, what is under way, how fast requests arrive."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from router.traffic import LONG_TAU_S
from services.common.clock import Clock
from services.common.errors import AlreadyExistsError, ResourceExhaustedError
from services.load_monitor.loads import KINDS, NO_ORDER, CandidateOrder, Loads
from services.load_monitor.model import MAX_REPORTS_BYTES, RouterReport, SharedLoads

# Tag and length around a report in a state, and its age.
_ENTRY_BYTES = 20
# Rates are added as whole millionths, which adding and taking away leaves exact.
_PER_RPS = 1_000_000


@dataclass(slots=True)
class _Router:
    """A router as last heard of.

    Attributes:
        report: Its last report.
        load_LC: What of the total is its load.
        extra_bytes: By how many bytes the report exceeds a router's share.
        heard_s: When it came, monotonic seconds.
        made_s: When it first came to a monitor, by the same clock.
        source: The stream it came by, or the name of the monitor that handed it over.
        is_open: False once that stream has broken, or that monitor hands it over no more.
    """

    report: RouterReport
    load_LC: Loads
    extra_bytes: int
    heard_s: float
    made_s: float
    source: object
    is_open: bool = True


class Aggregator:
    """The last report of every router, and the sum of their loads, kept up to date by each.

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
        self._share_bytes = MAX_REPORTS_BYTES // 2 // max_routers
        self._extra_bytes = 0
        self._order = NO_ORDER
        self._total_LC = np.zeros((KINDS, 0), np.int64)
        self._routers: dict[str, _Router] = {}
        self._short_sum = 0
        self._long_rps = 0.0
        self._updated_s: float | None = None

    def take(
        self, report: RouterReport, stream: object | None = None, monitor_id: str = ""
    ) -> bool:
        """Takes a report in; returns False if it is older than what is known already.

        A name belongs to one process (epoch) as long as that process reports. Epochs are told
        apart, never compared: a clock may have been set back, and anybody can claim a large one.
        A monitor that hands over another process than before has seen the end of that one.

        Args:
            report: The report.
            stream: The stream it came by; None: through another monitor.
            monitor_id: Unlike any other monitor's, of that one; empty if it does not tell.

        Raises:
            AlreadyExistsError: Another process reports under that name.
            ResourceExhaustedError: There are too many routers, or their reports are too large.
        """
        now_s = self._clock.monotonic_s()
        known = self._routers.get(report.router_id)
        if known is not None and known.report.epoch == report.epoch:
            if report.sequence <= known.report.sequence:
                return False
        elif known is not None and known.is_open and now_s - known.heard_s <= self._silence_s:
            if stream is not None:
                raise AlreadyExistsError(
                    "router id", report.router_id, "is in use by another process that reports"
                )
            if not monitor_id or known.source != monitor_id:
                return False
        extra_bytes = max(0, report.most_bytes + _ENTRY_BYTES - self._share_bytes)
        self._check_room(extra_bytes, known)
        self._update_long()
        if known is not None:
            self._forget(report.router_id)
        load_LC = report.loads.on(self._order)
        self._total_LC += load_LC
        self._short_sum += round(report.arrival_rate_rps * _PER_RPS)
        self._extra_bytes += extra_bytes
        # How old a report is, another monitor may say, and nobody else.
        made_s = now_s - (report.age_s if stream is None else 0.0)
        source = monitor_id if stream is None else stream
        self._routers[report.router_id] = _Router(
            report, load_LC, extra_bytes, now_s, made_s, source
        )
        if self._updated_s is None:
            # The estimate starts with the first thing seen; from zero it would need 10 s to arrive.
            self._long_rps = self.arrival_rate_short_rps
            self._updated_s = now_s
        return True

    def follow(self, order: CandidateOrder) -> None:
        """Adds up over these candidates from now on."""
        self._order = order
        self._total_LC = np.zeros((KINDS, len(order)), np.int64)
        for router in self._routers.values():
            router.load_LC = router.report.loads.on(order)
            self._total_LC += router.load_LC

    def _check_room(self, extra_bytes: int, known: _Router | None) -> None:
        """Raises ResourceExhaustedError if there is no room for a report.

        Half of the room is shared out equally among `max_routers`; larger reports take the rest.
        So no router can crowd out one that reports little, and the sum is bounded.
        """
        if known is None and len(self._routers) >= self._max_routers:
            raise ResourceExhaustedError(
                "TOO_MANY_ROUTERS", f"{self._max_routers} routers", f"{len(self._routers)} routers"
            )
        others_bytes = self._extra_bytes - (known.extra_bytes if known else 0)
        most_bytes = MAX_REPORTS_BYTES // 2
        if extra_bytes and others_bytes + extra_bytes > most_bytes:
            raise ResourceExhaustedError(
                "REPORTS_TOO_LARGE",
                f"{most_bytes} bytes beyond {self._share_bytes} per router",
                f"{others_bytes + extra_bytes} bytes",
            )

    def stream_broke(self, router_id: str, stream: object) -> None:
        """Notes that a router's stream ended without a good-bye: another process may take over."""
        known = self._routers.get(router_id)
        if known is not None and known.source is stream:
            known.is_open = False

    def handed_over(self, monitor_id: str, router_ids: Collection[str]) -> None:
        """Notes whose reports another monitor has: the others that it had report there no more."""
        for router_id, router in self._routers.items():
            if router.source == monitor_id and router_id not in router_ids:
                router.is_open = False

    def leave(self, router_id: str, epoch: int) -> None:
        """Forgets a router that said good-bye, unless a newer process has taken its name."""
        known = self._routers.get(router_id)
        if known is not None and known.report.epoch == epoch:
            self._update_long()
            self._forget(router_id)

    def _forget(self, router_id: str) -> None:
        router = self._routers.pop(router_id)
        self._extra_bytes -= router.extra_bytes
        self._total_LC -= router.load_LC
        self._short_sum -= round(router.report.arrival_rate_rps * _PER_RPS)

    def expire(self) -> list[str]:
        """Forgets silent routers and returns their names."""
        self._update_long()
        oldest_s = self._clock.monotonic_s() - self._silence_s
        silent = [name for name, router in self._routers.items() if router.heard_s < oldest_s]
        for name in silent:
            self._forget(name)
        return silent

    @property
    def reports(self) -> tuple[RouterReport, ...]:
        """The last report of every router, in order of name."""
        now_s = self._clock.monotonic_s()
        return tuple(_aged(self._routers[name], now_s) for name in sorted(self._routers))

    @property
    def open_reports(self) -> tuple[RouterReport, ...]:
        """Those of routers that still report here."""
        return tuple(each for each in self.reports if self._routers[each.router_id].is_open)

    def loads(self) -> SharedLoads:
        """Returns the loads as of now."""
        now_s = self._clock.monotonic_s()
        by_router = {
            name: (_aged(each, now_s), each.load_LC) for name, each in self._routers.items()
        }
        return SharedLoads(self._order, self._total_LC.copy(), by_router)

    @property
    def arrival_rate_short_rps(self) -> float:
        """Mesh-wide arrivals per second over about 0.2 seconds."""
        return self._short_sum / _PER_RPS

    @property
    def arrival_rate_long_rps(self) -> float:
        """Mesh-wide arrivals per second over about 10 seconds, as of the last `expire`."""
        return self._long_rps

    def in_flight_at(self, endpoint: str) -> int:
        """Returns how many requests the routers have under way at an endpoint."""
        names = self._order.names
        return sum(
            count
            for (_tier, name), count in zip(names, self._total_LC[0].tolist(), strict=True)
            if name == endpoint
        )

    def _update_long(self) -> None:
        if self._updated_s is None:
            return
        now_s = self._clock.monotonic_s()
        share = -math.expm1(-(now_s - self._updated_s) / LONG_TAU_S)
        self._long_rps += share * (self.arrival_rate_short_rps - self._long_rps)
        self._updated_s = now_s


def _aged(router: _Router, now_s: float) -> RouterReport:
    return replace(router.report, age_s=now_s - router.made_s)
