"""OpenTelemetry by its standard OTEL_* variables; spans are built after the fact, from stamps.

On the request path only identities are made (`begin`, `child`) and stamps taken. Once a request
has ended, spans are emitted for it if its head was sampled or it ended badly (`emit`). Without an
exporter nothing is recorded, nothing fails and nothing is printed; an incoming trace context is
still passed on.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracer,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from services.common.log import Logger

_SCOPE = InstrumentationScope("tiercel")
_SHUTDOWN_S = 3.0
_PROPAGATOR = TraceContextTextMapPropagator()
_HEADERS = frozenset(_PROPAGATOR.fields)
_EMPTY = Context()
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_NOT_SAMPLED = TraceFlags(TraceFlags.DEFAULT)
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class SpanIdentity:
    """Who a span is, known before it exists, so that it can be sent to the next service.

    Args:
        trace_id: 128 bits, 0 if there is no trace.
        span_id: 64 bits, 0 if there is no trace.
        parent_span_id: Span above, 0 if it is the first.
        parent_is_remote: True if the parent came over the network.
        sampled: Decision of the head: True means every span of the trace is kept.
        trace_state: What `tracestate` said; None if there is no trace.
    """

    trace_id: int = 0
    span_id: int = 0
    parent_span_id: int = 0
    parent_is_remote: bool = False
    sampled: bool = False
    trace_state: TraceState | None = None

    @property
    def trace_id_text(self) -> str:
        """The trace id in 32 hexadecimal digits; empty if there is none."""
        return f"{self.trace_id:032x}" if self.trace_id else ""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the W3C trace context as gRPC metadata; empty if there is no trace."""
        flags = _SAMPLED if self.sampled else _NOT_SAMPLED
        span = SpanContext(self.trace_id, self.span_id, False, flags, self.trace_state)
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(NonRecordingSpan(span), _EMPTY))
        return tuple(carrier.items())


NO_SPAN = SpanIdentity()


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened within a span.

    Args:
        name: Its name.
        time_ns: When, nanoseconds since 1970.
        attributes: What is known about it.
    """

    name: str
    time_ns: int
    attributes: Mapping[str, AttributeValue] | None = None


class Telemetry:
    """Traces of one process.

    Args:
        provider: The set-up SDK; None records nothing.
        rng: Source of trace and span ids.
    """

    def __init__(self, provider: TracerProvider | None, rng: random.Random) -> None:
        self._provider = provider
        self._rng = rng
        self._processor = getattr(provider, "_active_span_processor", None)

    @property
    def enabled(self) -> bool:
        """True if spans are recorded."""
        return self._provider is not None

    @property
    def tracer(self) -> Tracer:
        """A tracer for work off the request path, where spans may be made as they happen."""
        return self._provider.get_tracer("tiercel") if self._provider else NoOpTracer()

    def begin(self, metadata: Metadata | None, name: str = "request") -> SpanIdentity:
        """Returns the identity of the first span of this process for an incoming call.

        Args:
            metadata: The call's metadata; may hold `traceparent` and `tracestate`.
            name: Name of the span, for samplers that look at it.
        """
        parent = parse_trace_context(metadata)
        if self._provider is None:
            return parent
        trace_id = parent.trace_id or self._rng.getrandbits(128) or 1
        sampled = parent.sampled if parent.trace_id else self._sample(trace_id, name)
        return SpanIdentity(
            trace_id, self._rng.getrandbits(64) or 1, parent.span_id, bool(parent.trace_id),
            sampled, parent.trace_state,
        )  # fmt: skip

    def child(self, parent: SpanIdentity) -> SpanIdentity:
        """Returns the identity of a span below `parent` (`parent` if nothing is recorded)."""
        if self._provider is None or not parent.trace_id:
            return parent
        return SpanIdentity(
            parent.trace_id, self._rng.getrandbits(64) or 1, parent.span_id, False,
            parent.sampled, parent.trace_state,
        )  # fmt: skip

    def emit(
        self,
        identity: SpanIdentity,
        name: str,
        *,
        start_ns: int,
        end_ns: int,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, AttributeValue] | None = None,
        events: Sequence[SpanEvent] = (),
        error: str | None = None,
        force: bool = False,
    ) -> None:
        """Builds a span that has ended and hands it to the exporter.

        Args:
            identity: Who it is.
            name: Name of the span.
            start_ns: Start, nanoseconds since 1970.
            end_ns: End, nanoseconds since 1970.
            kind: Role in the call.
            attributes: What is known about it.
            events: What happened within it.
            error: Why it failed; None if it did not.
            force: True keeps it although the head was not sampled (a bad request).
        """
        if self._provider is None or not identity.trace_id or not (identity.sampled or force):
            return
        parent = None
        if identity.parent_span_id:
            parent = SpanContext(
                identity.trace_id, identity.parent_span_id, identity.parent_is_remote,
                _SAMPLED if identity.sampled else _NOT_SAMPLED, identity.trace_state,
            )  # fmt: skip
        kept = SpanContext(
            identity.trace_id, identity.span_id, False, _SAMPLED, identity.trace_state
        )
        span = ReadableSpan(
            name=name,
            context=kept,
            parent=parent,
            resource=self._provider.resource,
            attributes=attributes,
            events=[Event(event.name, event.attributes, event.time_ns) for event in events],
            kind=kind,
            status=Status(StatusCode.ERROR, error) if error is not None else Status(),
            start_time=start_ns,
            end_time=end_ns,
            instrumentation_scope=_SCOPE,
        )
        if self._processor is not None:
            self._processor.on_end(span)

    def close(self) -> None:
        """Sends what is left, within 3 seconds, and stops; blocks, so call it in a thread."""
        if self._provider is None:
            return
        # The SDK waits long for a collector that is gone; a daemon thread cannot hold up the exit.
        worker = threading.Thread(target=self._provider.shutdown, daemon=True)
        worker.start()
        worker.join(_SHUTDOWN_S)

    def _sample(self, trace_id: int, name: str) -> bool:
        assert self._provider is not None
        result = self._provider.sampler.should_sample(None, trace_id, name, SpanKind.SERVER)
        return result.decision is Decision.RECORD_AND_SAMPLE


def parse_trace_context(metadata: Metadata | None) -> SpanIdentity:
    """Returns the remote span that W3C trace context metadata names; NO_SPAN if none valid."""
    carrier = {key: value for key, value in metadata or () if key in _HEADERS}
    if not carrier:
        return NO_SPAN
    found = get_current_span(_PROPAGATOR.extract(carrier, _EMPTY)).get_span_context()
    if not found.is_valid:
        return NO_SPAN
    sampled = found.trace_flags.sampled
    return SpanIdentity(found.trace_id, found.span_id, 0, True, sampled, found.trace_state)


def setup_telemetry(
    service_name: str,
    *,
    environ: Mapping[str, str],
    rng: random.Random,
    log: Logger,
    exporter: SpanExporter | None = None,
    sample_ratio: float = 1.0,
) -> Telemetry:
    """Sets up traces as the OTEL_* variables say.

    An exporter is made only if OTEL_TRACES_EXPORTER names one or an OTLP endpoint is given.

    Args:
        service_name: `service.name` of the resource, unless OTEL_SERVICE_NAME gives another.
        environ: Environment variables.
        rng: Source of trace and span ids; seed it from the system in production.
        log: Where a variable nobody understands is reported, and the first exporter failure.
        exporter: Used instead of the variables' one (tests).
        sample_ratio: Share of traces begun here that are kept, unless OTEL_TRACES_SAMPLER is set.
    """
    _route_sdk_logs(log)
    chosen = exporter or _exporter(environ, log)
    if chosen is None or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Telemetry(None, rng)
    named = environ.get("OTEL_SERVICE_NAME") or service_name
    named_sampler = bool(environ.get("OTEL_TRACES_SAMPLER"))
    provider = TracerProvider(
        # None lets the SDK follow OTEL_TRACES_SAMPLER.
        sampler=None if named_sampler else ParentBased(TraceIdRatioBased(sample_ratio)),
        resource=Resource.create({SERVICE_NAME: named, "process.pid": os.getpid()}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(chosen))
    return Telemetry(provider, rng)


def _exporter(environ: Mapping[str, str], log: Logger) -> SpanExporter | None:
    names = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    has_endpoint = any(environ.get(name) for name in _ENDPOINT_VARIABLES)
    if names == "none" or (not names and not has_endpoint):
        return None
    if names == "console":
        return ConsoleSpanExporter()
    if names not in {"", "otlp"}:
        log.warning(
            "telemetry_off", variable="OTEL_TRACES_EXPORTER", got=names, known="otlp, console, none"
        )
        return None
    protocol = (
        environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "grpc"
    )
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http import trace_exporter

        return trace_exporter.OTLPSpanExporter()
    log.warning(
        "telemetry_off", variable="OTEL_EXPORTER_OTLP_PROTOCOL", got=protocol,
        known="grpc, http/protobuf",
    )  # fmt: skip
    return None


def _route_sdk_logs(log: Logger) -> None:
    """Lets the SDK report a failure once; a collector that is down would fill the log otherwise."""
    sdk = logging.getLogger("opentelemetry")
    sdk.handlers[:] = [_OnceHandler(log)]
    sdk.propagate = False
    sdk.setLevel(logging.WARNING)


class _OnceHandler(logging.Handler):
    """Passes the first record on as one line without a traceback, and drops the rest."""

    def __init__(self, log: Logger) -> None:
        super().__init__()
        self._log = log
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._told:
            return
        self._told = True
        text = record.getMessage().splitlines()[0] if record.getMessage() else ""
        self._log.warning("telemetry_failing", problem=text, note="not repeated")
