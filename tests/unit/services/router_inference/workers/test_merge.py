"""Metrics of several workers become those of one router."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from services.router_inference.workers.merge import (
    AVERAGED_GAUGES,
    SUMMED_GAUGES,
    add_pages,
    lasting,
    merged,
)
from tests.unit.deploy.manifests import DEPLOY, load_yaml


def page(counts: Mapping[str, float], gauges: Mapping[str, float] | None = None) -> str:
    """Returns a worker's metrics: requests by outcome, gauges, latencies 0.1 and 2.0."""
    registry = CollectorRegistry()
    requests = Counter("requests", "Ended.", ["outcome"], registry=registry)
    for outcome, count in counts.items():
        requests.labels(outcome=outcome).inc(count)
    for name, value in (gauges or {}).items():
        Gauge(name, "Now.", registry=registry).set(value)
    latency = Histogram("latency_seconds", "Time.", buckets=(0.5, 1.0), registry=registry)
    latency.observe(0.1)
    latency.observe(2.0)
    return generate_latest(registry).decode()


def values(metrics: list[Metric]) -> dict[tuple[str, ...], float]:
    """Returns values by name of the sample and values of its labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def test_counts_and_histograms_add_up() -> None:
    """Also where only one worker has a series."""
    told = values(merged(add_pages({}, [page({"late": 2, "failed": 1}), page({"late": 3})])))
    assert told["requests_total", "late"] == 5.0
    assert told["requests_total", "failed"] == 1.0
    assert told["latency_seconds_bucket", "0.5"] == 2.0
    assert told["latency_seconds_bucket", "+Inf"] == 4.0
    assert told["latency_seconds_sum",] == pytest.approx(4.2)


def test_counts_of_workers_that_ended_stay_and_their_gauges_go() -> None:
    """No counter goes down, no series is lost, and nothing is under way in a dead process."""
    ended = lasting(add_pages({}, [page({"late": 2, "failed": 1}, {"tiercel_rpc_running": 7})]))
    ended = lasting(add_pages(ended, [page({"late": 4})]))
    told = values(merged(add_pages(ended, [page({"late": 1}, {"tiercel_rpc_running": 1})])))
    assert told["requests_total", "late"] == 7.0
    assert told["requests_total", "failed"] == 1.0
    assert told["latency_seconds_bucket", "+Inf"] == 6.0
    assert told["tiercel_rpc_running",] == 1.0


def test_what_ended_workers_left_is_not_changed_by_a_scrape() -> None:
    """A page is added to a copy."""
    ended = lasting(add_pages({}, [page({"late": 2})]))
    add_pages(ended, [page({"late": 5})])
    assert values(merged(ended))["requests_total", "late"] == 2.0


@pytest.mark.parametrize(
    ("name", "both", "expected"),
    [
        ("tiercel_requests_in_flight", (2.0, 3.0), 5.0),
        ("tiercel_candidate_availability", (1.0, 0.5), 0.75),
        ("tiercel_state_age_seconds", (0.1, 4.0), 4.0),
        ("tiercel_state_age_seconds", (math.nan, 4.0), 4.0),
        ("process_start_time_seconds", (8.0, 5.0), 5.0),
    ],
)
def test_a_gauge_is_told_by_what_it_says(
    name: str, both: tuple[float, float], expected: float
) -> None:
    """Sums of what each has, means of opinions, else the worst; what is unknown does not count."""
    pages = [page({}, {name: value}) for value in both]
    assert values(merged(add_pages({}, pages)))[name,] == expected


def test_a_gauge_that_nobody_knows_stays_unknown() -> None:
    """It is neither 0 nor gone."""
    pages = [page({}, {"tiercel_state_age_seconds": math.nan})]
    assert math.isnan(values(merged(add_pages({}, pages)))["tiercel_state_age_seconds",])


def test_rules_name_gauges_that_exist() -> None:
    """A renamed gauge must not fall back to the largest unnoticed."""
    registry = load_yaml(DEPLOY / "telemetry" / "registry.yaml")["metrics"]
    gauges = {row["name"] for row in registry if row["type"] == "gauge"}
    own = {name for name in SUMMED_GAUGES | AVERAGED_GAUGES if name.startswith("tiercel_")}
    assert own <= gauges
