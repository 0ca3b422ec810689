"""Terms of the monitor: endpoints and their health, routers and their reports, one picture."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from router.fleet import EndpointSpec

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
MAX_STATE_BYTES = MAX_REPORTS_BYTES + MAX_ENDPOINTS_BYTES + 64 * 1024
"""Largest state: what routers take in one message (32 MiB) lies above it."""
MAX_REASON_BYTES = 200
"""Longest reason of an endpoint."""


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


@dataclass(frozen=True, slots=True)
class RouterReport:
    """One router's load, as it reported it.

    Args:
        router_id: Name of the router process.
        epoch: Start stamp of the process; a restart is a new, larger epoch.
        sequence: Number of the report within the epoch, from 1.
        arrival_rate_rps: Arrivals at this router per second, over about 0.2 seconds.
        in_flight: Requests under way per (tier, endpoint).
        encoded: The whole report as it came; published again without being taken apart.
    """

    router_id: str
    epoch: int
    sequence: int
    arrival_rate_rps: float
    in_flight: tuple[tuple[str, str, int], ...]
    encoded: bytes


@dataclass(frozen=True, slots=True)
class Picture:
    """The shared picture of the mesh at one moment.

    Args:
        version: Number of the publication.
        monitor_id: Who published it.
        publish_wall_ns: When, nanoseconds since 1970.
        endpoints: Every known endpoint.
        routers: Every router heard of lately, with its last report.
        arrival_rate_short_rps: Mesh-wide arrivals per second over about 0.2 seconds.
        arrival_rate_long_rps: Same over about 10 seconds.
        topology_version: Number of the endpoint list.
    """

    version: int
    monitor_id: str
    publish_wall_ns: int
    endpoints: tuple[EndpointView, ...]
    routers: tuple[RouterReport, ...]
    arrival_rate_short_rps: float
    arrival_rate_long_rps: float
    topology_version: int


@dataclass(frozen=True, slots=True)
class Publication:
    """A picture ready to be sent.

    Args:
        version: Its number.
        payload: A serialized SystemState.
    """

    version: int
    payload: bytes
