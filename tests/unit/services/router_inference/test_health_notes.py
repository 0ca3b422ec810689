"""Reasons to be degraded are set and cleared, and shown."""

from __future__ import annotations

import logging

import pytest
from prometheus_client import CollectorRegistry

from services.common.log import get_logger
from services.router_inference.health_notes import (
    MONITOR_UNREACHABLE,
    REDIS_UNREACHABLE,
    HealthNotes,
)
from services.router_inference.records.metrics import RouterMetrics


def test_reasons_come_and_go_and_show_as_a_metric() -> None:
    """A reason holds until it is cleared; its gauge follows."""
    registry = CollectorRegistry()
    notes = HealthNotes(metrics=RouterMetrics(registry), log=get_logger("test"))
    notes.set(REDIS_UNREACHABLE, True)
    notes.set(MONITOR_UNREACHABLE, True, "UNAVAILABLE")
    assert notes.reasons == [MONITOR_UNREACHABLE, REDIS_UNREACHABLE]
    notes.set(REDIS_UNREACHABLE, False)
    assert notes.reasons == [MONITOR_UNREACHABLE]
    shown = [
        registry.get_sample_value("tiercel_degraded", {"reason": reason})
        for reason in (MONITOR_UNREACHABLE, REDIS_UNREACHABLE)
    ]
    assert shown == [1.0, 0.0]


def test_a_reason_is_logged_when_it_changes_only(caplog: pytest.LogCaptureFixture) -> None:
    """A link that fails every second does not fill the log."""
    notes = HealthNotes(metrics=RouterMetrics(CollectorRegistry()), log=get_logger("test"))
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            notes.set(MONITOR_UNREACHABLE, True, "UNAVAILABLE")
        notes.set(MONITOR_UNREACHABLE, False)
        notes.set(MONITOR_UNREACHABLE, False)
    assert [record.message for record in caplog.records] == ["degraded", "recovered"]
