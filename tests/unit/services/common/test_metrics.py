"""Counts and times of calls, plain until they are scraped."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.common.metrics import RpcMetrics, Tally


def test_buckets_are_cumulative_and_hold_their_bound() -> None:
    """As Prometheus reads them: each bucket counts all values up to its bound."""
    tally = Tally((0.1, 1.0))
    for value in (0.1, 0.5, 5.0):
        tally.observe(value)
    assert tally.buckets() == [("0.1", 1.0), ("1.0", 2.0), ("+Inf", 3.0)]
    assert tally.total == pytest.approx(5.6)


def test_a_page_may_tell_fewer_buckets_than_are_counted() -> None:
    """What is left out is part of the next one."""
    tally = Tally((0.1, 0.2, 1.0))
    for value in (0.05, 0.15, 0.5, 2.0):
        tally.observe(value)
    assert tally.buckets((0.1, 1.0)) == [("0.1", 1.0), ("1.0", 3.0), ("+Inf", 4.0)]
    assert list(tally.counts) == [1, 1, 1, 1]


def test_a_scrape_tells_calls_by_method_code_and_reason() -> None:
    """A method is there with zeros from its start; an error stands under its reason."""
    registry = CollectorRegistry()
    metrics = RpcMetrics(registry)
    times = metrics.add_method("x.Y/Ask")
    page = generate_latest(registry).decode()
    assert 'tiercel_rpc_handled_total{code="OK",method="x.Y/Ask",reason=""} 0.0' in page
    assert 'tiercel_rpc_duration_seconds_count{method="x.Y/Ask"} 0.0' in page
    for code, reason in (("OK", ""), ("OK", ""), ("NOT_FOUND", "TASK_NOT_FOUND")):
        metrics.count("x.Y/Ask", code, reason)
        times.observe(0.002)
    page = generate_latest(registry).decode()
    assert 'handled_total{code="OK",method="x.Y/Ask",reason=""} 2.0' in page
    assert 'handled_total{code="NOT_FOUND",method="x.Y/Ask",reason="TASK_NOT_FOUND"} 1.0' in page
    assert 'duration_seconds_bucket{le="0.0025",method="x.Y/Ask"} 3.0' in page
    assert 'duration_seconds_sum{method="x.Y/Ask"} 0.006' in page
