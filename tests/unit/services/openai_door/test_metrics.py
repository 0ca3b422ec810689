"""What the door counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from services.openai_door.metrics import DoorMetrics


def test_requests_are_counted_by_route_status_and_code() -> None:
    """And timed by route."""
    registry = CollectorRegistry()
    metrics = DoorMetrics(registry)
    metrics.count("/v1/models", 200)
    metrics.count("/v1/models", 401, "bad_credentials")
    metrics.count("/v1/models", 401, "bad_credentials")
    metrics.observe("/v1/models", 0.02)
    labels = {"route": "/v1/models", "status": "401", "code": "bad_credentials"}
    assert registry.get_sample_value("tiercel_http_handled_total", labels) == 2.0
    route = {"route": "/v1/models"}
    assert registry.get_sample_value("tiercel_http_duration_seconds_count", route) == 1.0
    bucket = {**route, "le": "0.01"}
    assert registry.get_sample_value("tiercel_http_duration_seconds_bucket", bucket) == 0.0
