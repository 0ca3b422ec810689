"""An OTLP/HTTP trace collector: takes protobuf (the services) and JSON (Triton) on loopback."""

from __future__ import annotations

import gzip
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """One span as it was exported.

    Attributes:
        service: Its resource's `service.name`.
        name: Its name.
        trace_id: 32 hex digits.
        span_id: 16 hex digits.
        parent_id: 16 hex digits, empty for a root.
        attributes: Values by name.
        events: Names of its events.
    """

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    events: tuple[str, ...]


@dataclass
class OtlpSink:
    """Collects spans until closed, and the bytes that they came as."""

    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Listens on a free loopback port."""
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                sink.bodies.append(body)
                is_json = "json" in self.headers.get("Content-Type", "")
                sink.spans.extend(_from_json(body) if is_json else _from_protobuf(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Value for OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def of_trace(self, trace_id: str) -> list[Span]:
        """Returns the spans of one trace."""
        return [span for span in list(self.spans) if span.trace_id == trace_id]


Place = tuple[str, str]
"""Service and name of a span."""


def edges(spans: list[Span]) -> set[tuple[Place, Place]]:
    """Returns (parent, child) of every span but roots; a parent not given is ("?", its id)."""
    places = {span.span_id: (span.service, span.name) for span in spans}
    return {
        (places.get(span.parent_id, ("?", span.parent_id)), (span.service, span.name))
        for span in spans
        if span.parent_id
    }


def _from_protobuf(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    spans = []
    for resource_spans in request.resource_spans:
        service = _proto_attributes(resource_spans.resource.attributes).get("service.name", "")
        for scope_spans in resource_spans.scope_spans:
            spans += [
                Span(
                    service,
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    _proto_attributes(span.attributes),
                    tuple(event.name for event in span.events),
                )
                for span in scope_spans.spans
            ]
    return spans


def _proto_attributes(attributes: Any) -> dict[str, Any]:
    return {pair.key: _proto_value(pair.value) for pair in attributes}


def _proto_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_proto_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def _from_json(body: bytes) -> list[Span]:
    spans = []
    for resource_spans in json.loads(body).get("resourceSpans", []):
        resource = _json_attributes(resource_spans.get("resource", {}).get("attributes", []))
        for scope_spans in resource_spans.get("scopeSpans", []):
            spans += [
                Span(
                    str(resource.get("service.name", "")),
                    span["name"],
                    span["traceId"].lower(),
                    span["spanId"].lower(),
                    span.get("parentSpanId", "").lower(),
                    _json_attributes(span.get("attributes", [])),
                    tuple(event["name"] for event in span.get("events", [])),
                )
                for span in scope_spans.get("spans", [])
            ]
    return spans


def _json_attributes(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: next(iter(pair["value"].values()), None) for pair in attributes}
