"""Spans as protobuf: what is written here is what the SDK writes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as sdk_encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from services.common.log import get_logger
from services.common.span_encoding import encode_spans
from services.common.telemetry import SpanEvent, Telemetry
from services.common.telemetry_setup import setup_telemetry

_VALUES = st.one_of(
    st.text(max_size=300),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.binary(max_size=10),
    st.lists(st.floats(allow_nan=False), max_size=40),
    st.lists(st.text(max_size=20), max_size=40),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    st.lists(st.booleans(), max_size=5),
)
_ATTRIBUTES = st.dictionaries(st.text(max_size=20), _VALUES, max_size=6)
_MOMENTS = st.integers(0, 2**63)
_CONTEXTS = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.just(TraceFlags(1)),
    st.sampled_from([TraceState(), TraceState([("vendor", "x"), ("other", "y")])]),
)
_SPANS = st.builds(
    ReadableSpan,
    name=st.text(max_size=20),
    context=_CONTEXTS,
    parent=st.none() | _CONTEXTS,
    resource=st.sampled_from([Resource({"service.name": "a", "process.pid": 7}), Resource({})]),
    attributes=st.none() | _ATTRIBUTES,
    events=st.lists(st.builds(Event, st.text(max_size=20), _ATTRIBUTES, _MOMENTS), max_size=2),
    kind=st.sampled_from(SpanKind),
    status=st.sampled_from([Status(), Status(StatusCode.ERROR, "why"), Status(StatusCode.OK)]),
    start_time=_MOMENTS,
    end_time=_MOMENTS,
    instrumentation_scope=st.sampled_from(
        [None, InstrumentationScope("tiercel"), InstrumentationScope("x", "1.2")]
    ),
)


@settings(max_examples=40)
@given(st.lists(_SPANS, max_size=4))
def test_messages_are_those_of_the_sdk(spans: list[ReadableSpan]) -> None:
    """Whatever a span says, in any order of processes and libraries."""
    assert encode_spans(spans) == sdk_encode_spans(spans)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_exporters_write_spans_this_way(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of the SDK's exporters; another version of it may look elsewhere."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    written: set[str] = set()

    def encode(spans: list[ReadableSpan]) -> ExportTraceServiceRequest:
        written.update(span.name for span in spans)
        return encode_spans(spans)

    monkeypatch.setattr("services.common.telemetry_setup.encode_spans", encode)
    telemetry = _telemetry(protocol)
    event = SpanEvent("token", 2)
    telemetry.emit(telemetry.begin(None), "told", start_ns=1, end_ns=3, events=(event,))
    telemetry.close()
    assert written == {"told"}


def _telemetry(protocol: str) -> Telemetry:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
    }
    return setup_telemetry(
        "x", environ=environ, rng=random.Random(1), log=get_logger("test"), sample_ratio=1.0
    )
