"""The monitor's own Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.books import Books
from services.load_monitor.coordination import Role
from services.load_monitor.model import Health, Picture


class MonitorCounters:
    """Counts of what happened."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.publications = Counter(
            "tiercel_monitor_publications",
            "States published, by target (watchers, redis).",
            ["target"],
            registry=registry,
        )
        self.reports = Counter(
            "tiercel_monitor_reports",
            "Router reports received, by result (taken, stale).",
            ["result"],
            registry=registry,
        )
        self.targets_set = Counter(
            "tiercel_monitor_targets_set",
            "Targets set, or given back to the settings, by callers.",
            ["task"],
            registry=registry,
        )


class MonitorCollector(Collector):
    """Gauges of the present picture, made anew at each scrape, so that what left leaves no trace.

    Runs in the thread of the metrics server and therefore reads only immutable objects.

    Args:
        picture: Returns the newest picture of the own board, None before the first.
        served: Returns the newest picture served, None before the first.
        age_s: Returns its age, seconds.
        role: Returns the monitor's role.
        books: Returns the last minute, and the last one with a figure in hindsight.
        degraded: Returns the reasons for which the monitor is degraded.
        watcher_count: Returns how many watch.
        failed_probe_counts: Returns failed probes per endpoint.
    """

    def __init__(
        self,
        *,
        picture: Callable[[], Picture | None],
        served: Callable[[], Picture | None],
        age_s: Callable[[], float],
        role: Callable[[], Role],
        books: Callable[[], tuple[Books | None, Books | None]],
        degraded: Callable[[], tuple[str, ...]],
        watcher_count: Callable[[], int],
        failed_probe_counts: Callable[[], tuple[tuple[str, int], ...]],
    ) -> None:
        self._picture = picture
        self._served = served
        self._age_s = age_s
        self._role = role
        self._books = books
        self._degraded = degraded
        self._watcher_count = watcher_count
        self._failed_probe_counts = failed_probe_counts

    def collect(self) -> Iterator[Metric]:
        """Yields every gauge."""
        role = _family("tiercel_monitor_role", "1 for the present role, else 0.", "role")
        for each in Role:
            role.add_metric([each.value], float(each is self._role()))
        yield role
        degraded = _family("tiercel_monitor_degraded", "1 per reason to be degraded.", "reason")
        for reason in self._degraded():
            degraded.add_metric([reason], 1.0)
        yield degraded
        yield _single("tiercel_monitor_watchers", "Open watches.", self._watcher_count())
        failures = _family(
            "tiercel_monitor_failed_probes", "Failed probes since the endpoint joined.", "endpoint"
        )
        for endpoint, count in self._failed_probe_counts():
            failures.add_metric([endpoint], count)
        yield failures
        yield from _books_gauges(*self._books())
        served = self._served()
        if served is not None:
            yield _single(
                "tiercel_monitor_state_age_seconds", "Age of the state served.", self._age_s()
            )
            yield _single(
                "tiercel_monitor_state_version", "Number of the state served.", served.version
            )
        picture = self._picture()
        if picture is not None:
            yield from _mesh_gauges(picture)
            yield from _endpoint_gauges(picture)


def _books_gauges(last: Books | None, reckoned: Books | None) -> Iterator[Metric]:
    requests = _family(
        "tiercel_monitor_minute_requests",
        "Requests in time, late, refused and failed in the last minute.",
        "task",
    )
    given_up = _family(
        "tiercel_monitor_quality_given_up",
        "Quality per request that a minute earned less than it might have, by what might have.",
        "task",
        "against",
    )
    devices = _family(
        "tiercel_monitor_static_large_devices",
        "Devices on which the largest tier alone would have earned as much in a minute, by"
        " simulation.",
    )
    for task, books in last.tasks.items() if last is not None else ():
        requests.add_metric([task], books.ended)
        if books.given_up is not None:
            given_up.add_metric([task, "always_large"], books.given_up)
    if reckoned is not None:
        for task, books in reckoned.tasks.items():
            if books.reckoned.regret is not None:
                given_up.add_metric([task, "bound"], books.reckoned.regret)
        if reckoned.static_large is not None:
            devices.add_metric([], reckoned.static_large)
    yield from (requests, given_up, devices)


def _mesh_gauges(picture: Picture) -> Iterator[Metric]:
    yield _single("tiercel_monitor_routers", "Routers known.", len(picture.routers))
    yield _single(
        "tiercel_monitor_topology_version", "Number of the list.", picture.topology_version
    )
    rate = _family(
        "tiercel_monitor_arrival_rate_rps", "Mesh-wide arrivals per second, by window.", "window"
    )
    rate.add_metric(["0.2s"], picture.arrival_rate_short_rps)
    rate.add_metric(["10s"], picture.arrival_rate_long_rps)
    yield rate
    in_flight = _family(
        "tiercel_monitor_in_flight", "Requests under way as routers report.", "tier", "endpoint"
    )
    target = _family("tiercel_target_override", "Target set while the mesh runs.", "task")
    for override in picture.targets:
        if override.target is not None:
            target.add_metric([override.task], override.target)
    yield target
    names, counts = picture.loads.order.names, picture.loads.total_LC[0].tolist()
    for candidate, count in zip(names, counts, strict=True):
        in_flight.add_metric(candidate, count)
    yield in_flight


def _endpoint_gauges(picture: Picture) -> Iterator[Metric]:
    health = _family(
        "tiercel_endpoint_health", "1 for the present health, else 0.", "endpoint", "health"
    )
    weight = _family("tiercel_endpoint_ramp_weight", "Share of normal traffic, 0 to 1.", "endpoint")
    labels = ("endpoint", "tier")
    ready = _family("tiercel_tier_ready", "1 if Triton says that it is ready.", *labels)
    depth = _family("tiercel_tier_queue_depth", "Requests in Triton's queue.", *labels)
    queue = _family("tiercel_tier_mean_queue_seconds", "Mean time in Triton's queue.", *labels)
    compute = _family("tiercel_tier_mean_compute_seconds", "Mean time in the model.", *labels)
    for view in picture.endpoints:
        name = view.spec.name
        for each in Health:
            health.add_metric([name, each.value], float(each is view.health))
        weight.add_metric([name], view.ramp_weight)
        for gauge in view.gauges:
            ready.add_metric([name, gauge.tier], float(gauge.ready))
            for family, value in (
                (depth, gauge.queue_depth),
                (queue, gauge.mean_queue_s),
                (compute, gauge.mean_compute_s),
            ):
                if value is not None:
                    family.add_metric([name, gauge.tier], value)
    yield from (health, weight, ready, depth, queue, compute)


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _single(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
