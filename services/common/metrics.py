"""Prometheus metrics: one registry per process, exposed over HTTP on a port of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from services.common.addresses import HostPort, parse_address
from services.common.failures import StartError

_RPC_BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip


# How soon the serving thread sees that it is to end; the library's own half second is a long stop.
_POLL_S = 0.05


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
        self.duration = Histogram(
            "tiercel_rpc_duration_seconds",
            "Time from the start of the handler to its end, streams to their last message.",
            ["method"],
            buckets=_RPC_BUCKETS_S,
            registry=registry,
        )


class _HttpServer(ThreadingMixIn, WSGIServer):
    """Answers each scrape in a thread of its own."""

    daemon_threads = True


class _Ipv6HttpServer(_HttpServer):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    """Writes no log line per scrape and does not wait for a client that stalls."""

    timeout = 5.0

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Does nothing."""


class MetricsServer:
    """Serves a registry over HTTP from a thread of its own."""

    def __init__(self, server: WSGIServer, thread: threading.Thread, address: HostPort) -> None:
        self._server = server
        self._thread = thread
        self.address = address

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
    kind = _Ipv6HttpServer if ":" in wanted.host else _HttpServer
    try:
        server = make_server(
            wanted.host,
            wanted.port,
            make_wsgi_app(registry),
            server_class=kind,
            handler_class=_Handler,
        )
    except OSError as error:
        raise StartError(f"cannot serve metrics on {listen}: {error.strerror or error}") from None
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), daemon=True)
    thread.start()
    return MetricsServer(server, thread, HostPort(wanted.host, server.server_port))
