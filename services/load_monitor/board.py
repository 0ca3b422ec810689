"""The board: routers, endpoints and their list in one place, from which pictures are taken."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from router.fleet import EndpointSpec
from services.common.clock import Clock
from services.load_monitor.aggregator import Aggregator
from services.load_monitor.health import EndpointTracker, HealthRules
from services.load_monitor.loads import NO_ORDER
from services.load_monitor.model import Picture, RatingTable, RouterReport, order_of
from services.load_monitor.ratings import MeshRatings, Process
from services.load_monitor.targets import Overrides, TargetOverride, in_force
from services.load_monitor.topology import Topology

# Routers report ten times a second; after this time without load an endpoint really is empty.
_SHORTEST_DRAIN_S = 1.0


class Board:
    """Everything the monitor knows at this moment.

    Args:
        monitor_id: Name of this process.
        clock: For stamps.
        rules: When an endpoint's health changes.
        aggregator: The routers' reports.
        topology: The endpoint list to begin with.
        ratings: What clients said of answers.
    """

    def __init__(
        self,
        *,
        monitor_id: str,
        clock: Clock,
        rules: HealthRules,
        aggregator: Aggregator,
        topology: Topology,
        ratings: MeshRatings | None = None,
    ) -> None:
        self._monitor_id = monitor_id
        self._clock = clock
        self._rules = rules
        self.aggregator = aggregator
        self.ratings = ratings or MeshRatings(clock=clock)
        self._topology = topology
        self._trackers: dict[str, EndpointTracker] = {}
        self._drain_start_s: dict[str, float] = {}
        self._targets: Overrides = {}
        self._dirty = True
        self.order = NO_ORDER
        self.endpoints_changed = asyncio.Event()
        self._follow_topology()

    @property
    def topology(self) -> Topology:
        """The endpoint list."""
        return self._topology

    @property
    def targets(self) -> Overrides:
        """What was said of targets while the mesh runs, by task; also what is over."""
        return self._targets

    @property
    def trackers(self) -> dict[str, EndpointTracker]:
        """What is known about each endpoint, by name."""
        return self._trackers

    @property
    def dirty(self) -> bool:
        """True if a picture taken now would differ from the last one."""
        return self._dirty or any(tracker.is_ramping() for tracker in self._trackers.values())

    def mark(self) -> None:
        """Notes that something changed."""
        self._dirty = True

    def take_report(
        self, report: RouterReport, stream: object | None = None, monitor_id: str = ""
    ) -> bool:
        """Takes a router's report in; False if it is out of date; see `Aggregator.take`."""
        taken = self.aggregator.take(report, stream, monitor_id)
        if taken:
            self.ratings.take(report)
        self._dirty = self._dirty or taken
        return taken

    def leave(self, router_id: str, epoch: int) -> None:
        """Forgets a router that said good-bye."""
        self.aggregator.leave(router_id, epoch)
        self._dirty = True

    def expire(self) -> list[str]:
        """Forgets silent routers and returns their names."""
        silent = self.aggregator.expire()
        self._dirty = self._dirty or bool(silent)
        return silent

    def use_topology(self, topology: Topology) -> None:
        """Replaces the endpoint list; what is known about endpoints that stay is kept."""
        if topology == self._topology:
            return
        self._topology = topology
        self._dirty = True
        self._follow_topology()

    def use_targets(self, targets: Overrides) -> None:
        """Replaces the targets set while the mesh runs."""
        if targets != self._targets:
            self._targets = targets
            self._dirty = True

    def use_ratings(self, table: RatingTable, counted: Mapping[Process, RatingTable]) -> None:
        """Goes on from what another monitor kept; what routers told here since is added."""
        self.ratings.adopt(table, counted)
        for report in self.aggregator.reports:
            self.ratings.take(report)
        self._dirty = True

    def targets_in_force(self) -> tuple[TargetOverride, ...]:
        """Returns the targets that take the place of the settings now."""
        return in_force(self._targets, self._clock.wall_ns())

    def drained(self) -> list[str]:
        """Returns the draining endpoints that are empty or have used up their time."""
        now_s = self._clock.monotonic_s()
        found: list[str] = []
        for name, drain_s in self._topology.draining.items():
            drained_s = now_s - self._drain_start_s.get(name, now_s)
            quiet = drained_s >= _SHORTEST_DRAIN_S
            if drained_s >= drain_s or (quiet and self.aggregator.in_flight_at(name) == 0):
                found.append(name)
        return found

    def picture(self, version: int) -> Picture:
        """Takes a picture under a number; afterwards the board is clean."""
        self._dirty = False
        draining = self._topology.draining
        return Picture(
            version=version,
            monitor_id=self._monitor_id,
            publish_wall_ns=self._clock.wall_ns(),
            endpoints=tuple(
                tracker.view(draining=name in draining) for name, tracker in self._trackers.items()
            ),
            loads=self.aggregator.loads(),
            arrival_rate_short_rps=self.aggregator.arrival_rate_short_rps,
            arrival_rate_long_rps=self.aggregator.arrival_rate_long_rps,
            topology_version=self._topology.version,
            targets=self.targets_in_force(),
            ratings=self.ratings.table,
        )

    def _follow_topology(self) -> None:
        """Makes the trackers match the endpoint list."""
        old = self._trackers
        self._trackers = {
            name: self._kept_or_new(old.get(name), spec)
            for name, spec in self._topology.endpoints.items()
        }
        # Of the trackers: a list that names the tiers of one in another order does not change it.
        self.order = order_of(each.spec for each in self._trackers.values()).same_or(self.order)
        self.aggregator.follow(self.order)
        now_s = self._clock.monotonic_s()
        self._drain_start_s = {
            name: self._drain_start_s.get(name, now_s) for name in self._topology.draining
        }
        self.endpoints_changed.set()

    def _kept_or_new(self, known: EndpointTracker | None, spec: EndpointSpec) -> EndpointTracker:
        if known is not None and known.spec == spec:
            return known
        return EndpointTracker(spec, rules=self._rules, clock=self._clock)
