"""Terms of the monitor: endpoints and their health, routers and their reports, one picture."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from router.fleet import EndpointSpec
from router.quality import RatedTier, Rating
from services.load_monitor.loads import KINDS, CandidateOrder, Loads, RouterLoads
from services.load_monitor.targets import TargetOverride

DEFAULT_DRAIN_S = 10.0
LONGEST_DRAIN_S = 3600.0
LEAST_CLAIMED_SPEED = 0.01
MOST_CLAIMED_SPEED = 1.0
"""A claim can only make a device count as slower than its profile: routers measure how fast it is,
and a device that says it is faster than all others would be sent everything."""

MAX_REPORT_BYTES = 256 * 1024
"""Largest report of a router."""
MAX_REPORTS_BYTES = 16 * 1024 * 1024
"""Most that the reports of all routers take in a state."""
MAX_ENDPOINTS_BYTES = 8 * 1024 * 1024
"""Most that all endpoints take in a state."""
MAX_RATINGS_BYTES = 256 * 1024
"""Most that the mesh's ratings take in a state."""
MAX_STATE_BYTES = MAX_REPORTS_BYTES + MAX_ENDPOINTS_BYTES + MAX_RATINGS_BYTES + 64 * 1024
"""Largest state: what routers take in one message (32 MiB) lies above it."""
MAX_REASON_BYTES = 200
"""Longest reason of an endpoint."""
LONGEST_AGE_S = 3_600.0
"""Most that a report is said to be old: silent routers are forgotten long before."""


class Health(enum.Enum):
    """Whether an endpoint can be used."""

    UNKNOWN = "unknown"
    READY = "ready"
    PARTIAL = "partial"
    DOWN = "down"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class TierGauge:
    """Load gauges of one tier at the last probe.

    Args:
        tier: Name of the tier.
        ready: True if Triton says that its model is ready.
        queue_depth: Requests waiting in Triton's queue; None if the metrics are not scraped.
        success_count: Requests finished since Triton started.
        failure_count: Requests failed since Triton started.
        mean_queue_s: Mean time in Triton's queue since the probe before, seconds; None: no request.
        mean_compute_s: Mean time in the model since the probe before, seconds; None: no request.
        kind: `reference`, `paced` or `production`; empty if unknown.
    """

    tier: str
    ready: bool
    queue_depth: int | None = None
    success_count: int = 0
    failure_count: int = 0
    mean_queue_s: float | None = None
    mean_compute_s: float | None = None
    kind: str = ""


@dataclass(frozen=True, slots=True)
class EndpointView:
    """One endpoint as the monitor sees it.

    Args:
        spec: What it is.
        health: Whether it can be used.
        ramp_weight: Share of its normal traffic it should get, 0 to 1.
        probe_wall_ns: When it was last probed, nanoseconds since 1970; 0 if never.
        gauges: Gauges per tier.
        reason: Why it is not READY; empty if it is.
    """

    spec: EndpointSpec
    health: Health
    ramp_weight: float
    probe_wall_ns: int
    gauges: tuple[TierGauge, ...]
    reason: str


RatingTable = Mapping[RatedTier, Rating]
"""Never changed: another table is another object."""
NO_RATINGS: RatingTable = {}


class ToldTasks(NamedTuple):
    """What a router tells about once a second, encoded, as the stream told it last.

    Args:
        latencies: When answers of tasks came.
        outcomes: How requests of tasks ended, since the router started.
        profiles: Its latency profiles, with age and error.
        ratings: What clients said of answers, since the router started.
        table: That, read.
    """

    latencies: bytes = b""
    outcomes: bytes = b""
    profiles: bytes = b""
    ratings: bytes = b""
    table: RatingTable = NO_RATINGS


NOTHING_TOLD = ToldTasks()


@dataclass(frozen=True, slots=True)
class RouterReport:
    """One router's load, as it reported it.

    Args:
        router_id: Name of the router process.
        epoch: Start stamp of the process; a restart is a new, larger epoch.
        sequence: Number of the report within the epoch, from 1.
        arrival_rate_rps: Arrivals at this router per second, over about 0.2 seconds.
        loads: Its load per candidate.
        encoded: The rest of the report as it came; published again without being taken apart.
        tasks: The parts of it about tasks, which the next report may leave out.
        arrival_rate_long_rps: The same over about 10 seconds; None if the router does not tell.
        age_s: Time since it first came to a monitor, seconds, as it came here or as the picture was
            taken that it is in.
    """

    router_id: str
    epoch: int
    sequence: int
    arrival_rate_rps: float
    loads: RouterLoads
    encoded: bytes
    tasks: ToldTasks = NOTHING_TOLD
    arrival_rate_long_rps: float | None = None
    age_s: float = 0.0

    @property
    def most_bytes(self) -> int:
        """Most bytes that it takes in a state that a client is sent."""
        return len(self.encoded) + self.loads.most_bytes


@dataclass(frozen=True, slots=True)
class SharedLoads:
    """What all routers have outstanding together, and what each of them adds to it.

    Args:
        order: Of the candidates, which are those of the endpoint list.
        total_LC: Sum over all routers.
        by_router: The last report of every router, and its load in that order, by name.
    """

    order: CandidateOrder
    total_LC: Loads
    by_router: Mapping[str, tuple[RouterReport, Loads]]

    @classmethod
    def of(cls, order: CandidateOrder, reports: Iterable[RouterReport]) -> SharedLoads:
        """Adds up the loads of reports."""
        by_router = {each.router_id: (each, each.loads.on(order)) for each in reports}
        total_LC = np.zeros((KINDS, len(order)), np.int64)
        for _report, load_LC in by_router.values():
            total_LC += load_LC
        return cls(order, total_LC, by_router)

    def own(self, router_id: str, epoch: int) -> tuple[RouterReport, Loads] | None:
        """Returns what a router process itself reported; None if nothing of it is counted.

        What another process of its name reported is another's load: one that was there first, or
        an earlier one, whose report the first of this one replaces.
        """
        own = self.by_router.get(router_id)
        return own if own is not None and own[0].epoch == epoch else None


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """The shared picture of the mesh at one moment.

    Args:
        version: Number of the publication.
        monitor_id: Who published it.
        publish_wall_ns: When, nanoseconds since 1970.
        endpoints: Every known endpoint.
        loads: Every router heard of lately, with its last report, and their sum.
        arrival_rate_short_rps: Mesh-wide arrivals per second over about 0.2 seconds.
        arrival_rate_long_rps: Same over about 10 seconds.
        topology_version: Number of the endpoint list.
        targets: Those set while the mesh runs, by name of the task.
        ratings: What clients said of answers everywhere.
    """

    version: int
    monitor_id: str
    publish_wall_ns: int
    endpoints: tuple[EndpointView, ...]
    loads: SharedLoads
    arrival_rate_short_rps: float
    arrival_rate_long_rps: float
    topology_version: int
    targets: tuple[TargetOverride, ...] = ()
    ratings: RatingTable = field(default_factory=dict)

    @property
    def routers(self) -> tuple[RouterReport, ...]:
        """The last report of every router, in order of name."""
        return tuple(report for _name, (report, _load) in sorted(self.loads.by_router.items()))


def order_of(endpoints: Iterable[EndpointSpec]) -> CandidateOrder:
    """Returns the order of an endpoint list: endpoint by endpoint, each with its tiers."""
    return CandidateOrder((tier, spec.name) for spec in endpoints for tier in spec.models)
