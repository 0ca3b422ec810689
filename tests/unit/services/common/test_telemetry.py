"""Traces: identities, spans built from stamps, propagation, and silence without a collector."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from services.common.log import get_logger
from services.common.telemetry import (
    NO_SPAN,
    SpanEvent,
    Telemetry,
    parse_trace_context,
)
from services.common.telemetry_setup import setup_telemetry

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
LOG = get_logger("test")

Make = Callable[..., tuple[Telemetry, InMemorySpanExporter]]


@pytest.fixture
def make() -> Make:
    """Makes telemetry with an exporter that keeps the spans."""

    def make(**environ: str) -> tuple[Telemetry, InMemorySpanExporter]:
        exporter = InMemorySpanExporter()
        telemetry = setup_telemetry(
            "router-inference", environ=environ, rng=random.Random(1), log=LOG, exporter=exporter
        )
        return telemetry, exporter

    return make


@pytest.mark.parametrize(
    "header",
    [
        "",
        "garbage",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE[:-1]}+-{SPAN}-01",
    ],
)
def test_invalid_trace_context_is_ignored(header: str) -> None:
    """A header that breaks the W3C rules starts no trace of its own making."""
    assert parse_trace_context([("traceparent", header)]) == NO_SPAN


def test_trace_context_survives_the_way_through(make: Make) -> None:
    """What goes out is the incoming trace with a new span and the same decision and state."""
    telemetry, _ = make()
    metadata = [("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "a=b")]
    child = telemetry.child(telemetry.begin(metadata))
    (_, parent), state = child.metadata()
    version, trace, span, flags = parent.split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert span not in (SPAN, "0" * 16)
    assert state == ("tracestate", "a=b")


def test_spans_are_built_from_stamps_with_their_parents(make: Make) -> None:
    """Times, parents, attributes, events and status arrive as they were given."""
    telemetry, exporter = make()
    root = telemetry.begin([("traceparent", f"00-{TRACE}-{SPAN}-01")])
    child = telemetry.child(root)
    telemetry.emit(
        child,
        "decide",
        start_ns=10,
        end_ns=20,
        attributes={"tiercel.tier": "small"},
        events=[SpanEvent("first_token", 15)],
    )
    telemetry.emit(root, "Generate", start_ns=5, end_ns=30, kind=SpanKind.SERVER, error="late")
    telemetry.close()
    first, second = exporter.get_finished_spans()
    assert first.parent is not None
    assert second.parent is not None
    assert (first.parent.span_id, second.parent.span_id) == (root.span_id, int(SPAN, 16))
    assert (first.parent.is_remote, second.parent.is_remote) == (False, True)
    assert (first.start_time, first.end_time) == (10, 20)
    assert dict(first.attributes or {}) == {"tiercel.tier": "small"}
    assert [(event.name, event.timestamp) for event in first.events] == [("first_token", 15)]
    assert (second.status.status_code, second.status.description) == (StatusCode.ERROR, "late")
    assert second.resource.attributes["service.name"] == "router-inference"


def test_head_decides_and_bad_requests_are_kept_anyway(make: Make) -> None:
    """An unsampled request leaves no span unless it is forced."""
    telemetry, exporter = make()
    identity = telemetry.begin([("traceparent", f"00-{TRACE}-{SPAN}-00")])
    assert not identity.sampled
    telemetry.emit(identity, "good", start_ns=1, end_ns=2)
    telemetry.emit(identity, "bad", start_ns=1, end_ns=2, force=True)
    telemetry.close()
    assert [span.name for span in exporter.get_finished_spans()] == ["bad"]


def test_without_an_exporter_the_context_only_passes_through() -> None:
    """Nothing is recorded, no trace is begun, and the caller's trace goes on unchanged."""
    telemetry = setup_telemetry("x", environ={}, rng=random.Random(1), log=LOG)
    assert not telemetry.enabled
    assert telemetry.begin(None) == NO_SPAN
    assert NO_SPAN.metadata() == ()
    header = ("traceparent", f"00-{TRACE}-{SPAN}-01")
    assert telemetry.child(telemetry.begin([header])).metadata() == (header,)
    telemetry.emit(telemetry.begin([header]), "x", start_ns=1, end_ns=2, force=True)
    telemetry.close()
