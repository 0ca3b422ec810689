"""A span around each call, where OpenTelemetry is installed and set up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tiercel.errors import TiercelError

try:
    from opentelemetry import propagate, trace
except ImportError:  # an optional dependency: without it calls are made without spans
    OPENTELEMETRY = False
else:
    OPENTELEMETRY = True

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

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
    if not OPENTELEMETRY:
        yield (), ""
        return
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
    context = span.get_span_context()
    try:
        yield (
            tuple(carrier.items()),
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
