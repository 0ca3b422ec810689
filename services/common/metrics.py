"""Prometheus metrics: one registry per process, exposed over HTTP on a port of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from services.common.addresses import HostPort, parse_address
from services.common.start_error import StartError

_RPC_BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
_STALL_S = 5.0


def new_registry() -> CollectorRegistry:
    """Returns a registry that already holds process, platform and garbage collector metrics."""
    # A stamp per counter doubles the page and nobody reads it.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class RpcMetrics:
    """Counts and times of the methods a server answers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.handled = Counter(
            "tiercel_rpc_handled",
            "Calls answered, by method, gRPC status code and ErrorInfo reason (empty if OK).",
            ["method", "code", "reason"],
            registry=registry,
        )
        self.running = Gauge("tiercel_rpc_running", "Calls that run now.", registry=registry)
        self.duration = Histogram(
            "tiercel_rpc_duration_seconds",
            "Time from the start of the handler to its end, streams to their last message.",
            ["method"],
            buckets=_RPC_BUCKETS_S,
            registry=registry,
        )


class MetricsServer:
    """Serves a registry over HTTP from a thread of its own."""

    def __init__(self, server: WSGIServer, thread: threading.Thread, address: HostPort) -> None:
        self._server = server
        self._thread = thread
        self.address = address

    @property
    def descriptor(self) -> int:
        """File descriptor of the listening socket."""
        return self._server.fileno()

    async def close(self) -> None:
        """Stops serving and frees the port."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        self._thread.join(timeout=1.0)


def start_metrics_server(listen: str, registry: CollectorRegistry) -> MetricsServer:
    """Starts to serve `registry`.

    Args:
        listen: `host:port`; port 0 takes a free one.
        registry: What to serve.

    Raises:
        StartError: The port cannot be listened on.
    """
    wanted = parse_address(listen, allow_port_zero=True)
    try:
        server, thread = start_http_server(wanted.port, wanted.host, registry)
    except OSError as error:
        raise StartError(f"cannot serve metrics on {listen}: {error.strerror or error}") from None
    # The library's handler waits for ever for a client that stalls.
    handler: Any = server.RequestHandlerClass
    server.RequestHandlerClass = type("_Handler", (handler,), {"timeout": _STALL_S})
    return MetricsServer(server, thread, HostPort(wanted.host, server.server_port))
