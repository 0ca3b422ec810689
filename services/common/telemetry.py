"""Spans, built after the fact from stamps; `telemetry_setup.py` says where they go.

On the request path only identities are made (`begin`, `child`) and stamps taken. Once a request
has ended, spans are emitted for it if its head was sampled or it ended badly (`emit`). Without an
exporter nothing is recorded, nothing fails and nothing is printed; an incoming trace context is
still passed on.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

_SCOPE = InstrumentationScope("tiercel")
_SHUTDOWN_S = 3.0
_PROPAGATOR = TraceContextTextMapPropagator()
_HEADERS = frozenset(_PROPAGATOR.fields)
_EMPTY = Context()
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_NOT_SAMPLED = TraceFlags(TraceFlags.DEFAULT)

Metadata = Iterable[tuple[str, str | bytes]]


class SpanIdentity(NamedTuple):
    """Who a span is, known before it exists, so that it can be sent to the next service.

    Attributes:
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
        self._kept_below = None if provider is None else _kept_below(provider.sampler)

    @property
    def enabled(self) -> bool:
        """True if spans are recorded."""
        return self._provider is not None

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
        """Returns whether a trace that begins here is kept."""
        if self._kept_below is not None:
            return trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._kept_below
        assert self._provider is not None
        result = self._provider.sampler.should_sample(None, trace_id, name, SpanKind.SERVER)
        return result.decision is Decision.RECORD_AND_SAMPLE


def _kept_below(sampler: Sampler) -> int | None:
    """Returns the bound of a sampler that goes by the trace id alone, None for any other.

    The comparison is a twentieth of what asking the sampler takes, and every request is asked for.
    """
    # Who has a parent is not asked for here.
    root = sampler._root if isinstance(sampler, ParentBased) else sampler
    return root.bound if type(root) is TraceIdRatioBased else None


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
