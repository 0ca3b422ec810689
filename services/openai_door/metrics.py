"""What this door counts."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.common.metrics import Tally

_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
)  # fmt: skip


class DoorMetrics(Collector):
    """Requests by route, status and code of the error; they become metrics when scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.connections = Gauge(
            "tiercel_http_connections", "Open connections of clients.", registry=registry
        )
        self.routers_serving = Gauge(
            "tiercel_http_routers_serving",
            "Addresses of routers whose health is SERVING.",
            registry=registry,
        )
        self.loop_tasks = Gauge(
            "tiercel_loop_tasks", "Tasks of the process's event loop.", registry=registry
        )
        self._handled: dict[tuple[str, int, str], int] = {}
        self._durations: dict[str, Tally] = {}
        registry.register(self)

    def count(self, route: str, status: int, code: str = "") -> None:
        """Counts a request that has ended."""
        key = route, status, code
        self._handled[key] = self._handled.get(key, 0) + 1

    def observe(self, route: str, duration_s: float) -> None:
        """Notes how long a request took, streams to their end."""
        tally = self._durations.get(route)
        if tally is None:
            tally = self._durations[route] = Tally(_BUCKETS_S)
        tally.observe(duration_s)

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics; called by a scrape."""
        handled = CounterMetricFamily(
            "tiercel_http_handled",
            "Requests ended, by route, HTTP status and code of the error (empty for none).",
            labels=["route", "status", "code"],
        )
        for (route, status, code), count in self._handled.copy().items():
            handled.add_metric([route, str(status), code], float(count))
        yield handled
        duration = HistogramMetricFamily(
            "tiercel_http_duration_seconds",
            "Time from a request's headers to the end of its answer.",
            labels=["route"],
        )
        for route, tally in self._durations.copy().items():
            duration.add_metric([route], tally.buckets(), tally.total)
        yield duration
