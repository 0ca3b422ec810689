"""One page of metrics out of those of every worker, the ones that ended among them.

Counts and histograms add up, and those of a worker that ended stay, so that no counter goes down.
A gauge of several workers is their sum, their mean, or the largest, by what it says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

SUMMED_GAUGES = frozenset(
    {
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "tiercel_candidate_in_flight",
        "tiercel_loop_tasks",
        "tiercel_requests_in_flight",
        "tiercel_rpc_running",
    }
)
"""Gauges of things that each worker has for itself."""
AVERAGED_GAUGES = frozenset(
    {
        "tiercel_candidate_availability",
        "tiercel_device_slowness",
        "tiercel_profile_error",
        "tiercel_tier_quality",
    }
)
"""Gauges of one thing that every worker has its own opinion of."""
LEAST_GAUGES = frozenset({"process_start_time_seconds"})
"""Gauges of which the oldest worker's counts; all others are told by the worst, the largest."""

_ADDED_TYPES = frozenset({"counter", "histogram", "summary"})

Series = tuple[str, tuple[tuple[str, str], ...]]
"""Name of a sample and its labels."""
Families = Mapping[str, tuple[Metric, Mapping[Series, list[float]]]]
"""Metrics by name, each with every value that was told of each of its series."""


def add_pages(families: Families, pages: Iterable[str]) -> Families:
    """Returns families and what pages of Prometheus' text say, told one after the other."""
    made = {name: (metric, dict(values)) for name, (metric, values) in families.items()}
    for page in pages:
        for metric in text_string_to_metric_families(page):
            _, values = made.setdefault(metric.name, (metric, {}))
            for sample in metric.samples:
                series = (sample.name, tuple(sample.labels.items()))
                values[series] = [*values.get(series, []), sample.value]
    return made


def lasting(families: Families) -> Families:
    """Returns what outlives the workers: the sums of counts, without a gauge."""
    return {
        name: (metric, {series: [math.fsum(each)] for series, each in values.items()})
        for name, (metric, values) in families.items()
        if metric.type in _ADDED_TYPES
    }


def merged(families: Families) -> list[Metric]:
    """Returns one metric for each family, with one value for each of its series."""
    page = []
    for metric, values in families.values():
        one = Metric(metric.name, metric.documentation, metric.type)
        for (name, labels), told in values.items():
            one.add_sample(name, dict(labels), _one_value(metric, told))
        page.append(one)
    return page


def _one_value(metric: Metric, told: list[float]) -> float:
    known = [value for value in told if not math.isnan(value)]
    if not known:
        return math.nan
    if metric.type in _ADDED_TYPES or metric.name in SUMMED_GAUGES:
        return math.fsum(known)
    if metric.name in AVERAGED_GAUGES:
        return math.fsum(known) / len(known)
    return min(known) if metric.name in LEAST_GAUGES else max(known)
