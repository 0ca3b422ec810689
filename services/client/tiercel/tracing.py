"""A span around each call, where OpenTelemetry is installed and set up."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tiercel.errors import TiercelError

try:
    from opentelemetry import propagate, trace
except ImportError:  # an optional dependency: without it calls are made without spans
    OPENTELEMETRY = False
except Exception as error:  # for one a propagator that OTEL_PROPAGATORS names and nobody has
    OPENTELEMETRY = False
    warnings.warn(f"no spans are made: {error!r}", RuntimeWarning, stacklevel=2)
else:
    OPENTELEMETRY = True

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

SERVICE = "tiercel.router_inference.v1.RouterInferenceService"

Metadata = tuple[tuple[str, str], ...]


@contextlib.contextmanager
def client_span(
    provider: TracerProvider | None, method: str, task: str
) -> Iterator[tuple[Metadata, str]]:
    """Opens a client span; yields the metadata to send and the trace id (hex, empty without one).

    Args:
        provider: Makes the span; None means OpenTelemetry's global one.
        method: Name of the RPC.
        task: Task of the request, empty where the call has none.
    """
    begun = _begin(provider, method, task) if OPENTELEMETRY else None
    if begun is None:
        yield (), ""
        return
    span, metadata = begun
    context = span.get_span_context()
    try:
        yield (
            metadata,
            trace.format_trace_id(context.trace_id) if context.is_valid else "",
        )
    except TiercelError as error:
        span.set_attribute("rpc.grpc.status_code", int(error.code.value[0]))
        span.set_attribute("error.type", error.reason)
        span.set_status(trace.StatusCode.ERROR, str(error))
        raise
    except (GeneratorExit, asyncio.CancelledError):
        raise
    except BaseException as error:
        span.record_exception(error)
        span.set_status(trace.StatusCode.ERROR)
        raise
    finally:
        span.end()


def _begin(provider: TracerProvider | None, method: str, task: str) -> tuple[Span, Metadata] | None:
    """Returns a span and its metadata; None, with a warning, where what the user set up fails."""
    try:
        tracer = trace.get_tracer("tiercel.client", tracer_provider=provider)
        span = tracer.start_span(
            f"{SERVICE}/{method}",
            kind=trace.SpanKind.CLIENT,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": SERVICE,
                "rpc.method": method,
                "tiercel.task": task,
            },
        )
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span))
    except Exception as error:  # for one OTEL_PYTHON_TRACER_PROVIDER names what nobody has
        warnings.warn(f"no span is made: {error!r}", RuntimeWarning, stacklevel=2)
        return None
    return span, tuple(carrier.items())
