"""Prometheus metrics: one registry per process, exposed over HTTP on a port of its own."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    disable_created_metrics,
    start_http_server,
    values,
)
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from services.common.addresses import HostPort, parse_address
from services.common.http_host import host_problem, own_hosts
from services.common.start_error import StartError

_RPC_BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
_STALL_S = 5.0
_LONGEST_S = 60.0
"""How long one reader may take in all, seconds; Prometheus gives up sooner."""
_MOST_READERS = 64
"""Readers at a time, each of which has a thread."""
# With PROMETHEUS_MULTIPROC_DIR, which other services of a machine may need, the library would keep
# each of our numbers in files of that folder, and end a service where there is none.
for _name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
    os.environ.pop(_name, None)
values.ValueClass = values.MutexValue


def new_registry() -> CollectorRegistry:
    """Returns a registry that already holds process, platform and garbage collector metrics."""
    # A stamp per counter doubles the page and nobody reads it.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class Tally:
    """A histogram in plain Python: Prometheus' own takes five times as long per observation."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Takes the upper bounds of the buckets, ascending."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self, bounds: Sequence[float] = ()) -> list[tuple[str, float]]:
        """Returns (upper bound, values up to it) per bucket, as Prometheus wants them.

        Args:
            bounds: Those of its own bounds that are wanted; none: all.
        """
        named = [*map(floatToGoString, self._bounds), "+Inf"]
        all_of_them = zip(named, map(float, accumulate(self._counts)), strict=True)
        if not bounds:
            return list(all_of_them)
        wanted = {*map(floatToGoString, bounds), "+Inf"}
        return [each for each in all_of_them if each[0] in wanted]

    @property
    def counts(self) -> Sequence[int]:
        """Values per bucket, those above the last bound at the end."""
        return self._counts

    @property
    def total(self) -> float:
        """Sum of the values."""
        return self._sum


class RpcMetrics(Collector):
    """Counts and times of the methods a server answers; they become metrics when scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.running = Gauge("tiercel_rpc_running", "Calls that run now.", registry=registry)
        self.loop_tasks = Gauge(
            "tiercel_loop_tasks", "Tasks of the process's event loop.", registry=registry
        )
        self._handled: dict[tuple[str, str, str], int] = {}
        self._durations: dict[str, Tally] = {}
        registry.register(self)

    def count(self, method: str, code: str, reason: str = "") -> None:
        """Counts a call that was answered."""
        key = method, code, reason
        self._handled[key] = self._handled.get(key, 0) + 1

    def add_method(self, method: str) -> Tally:
        """Begins to tell of a method; returns where its times are counted."""
        self._handled.setdefault((method, "OK", ""), 0)
        return self._durations.setdefault(method, Tally(_RPC_BUCKETS_S))

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics; called by a scrape, from a thread of its own."""
        handled = CounterMetricFamily(
            "tiercel_rpc_handled",
            "Calls answered, by method, gRPC status code and ErrorInfo reason (empty if OK).",
            labels=["method", "code", "reason"],
        )
        # Copies, since the loop goes on counting meanwhile.
        for labels, count in self._handled.copy().items():
            handled.add_metric(labels, float(count))
        yield handled
        duration = HistogramMetricFamily(
            "tiercel_rpc_duration_seconds",
            "Time from the start of the handler to its end, streams to their last message.",
            labels=["method"],
        )
        for method, tally in self._durations.copy().items():
            duration.add_metric([method], tally.buckets(), tally.total)
        yield duration


@dataclass(frozen=True, slots=True)
class Page:
    """Something that is served beside the metrics.

    Attributes:
        headers: Its HTTP headers.
        read: Returns what it holds at present; called from threads of the metrics server.
    """

    headers: Sequence[tuple[str, str]]
    read: Callable[[], bytes]


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


def start_metrics_server(
    listen: str,
    registry: CollectorRegistry,
    pages: Mapping[str, Page] | None = None,
    *,
    hosts: Collection[str] = (),
) -> MetricsServer:
    """Starts to serve `registry`.

    Args:
        listen: `host:port`; port 0 takes a free one.
        registry: What to serve.
        pages: What else, by path; every other path is the metrics.
        hosts: Names that it may be asked by on loopback, beside those of this machine.

    Raises:
        StartError: The port cannot be listened on.
    """
    wanted = parse_address(listen, allow_port_zero=True)
    try:
        server, thread = start_http_server(wanted.port, wanted.host, registry)
    except OSError as error:
        cause = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            cause += "; name another in metrics_listen"
        raise StartError(f"cannot serve metrics on {listen}: {cause}") from None
    # The library's handler waits for ever for a client that stalls.
    handler: Any = server.RequestHandlerClass
    server.RequestHandlerClass = type("_Handler", (handler,), {"timeout": _STALL_S})
    _bound(server)
    answer = _with_pages(pages or {}, _with_any_version(server.get_app()))
    server.set_app(_for_own_hosts(own_hosts(listen, hosts), answer))
    return MetricsServer(server, thread, HostPort(wanted.host, server.server_port))


def _bound(server: Any) -> None:
    """Bounds how many read at a time, and for how long; whoever comes beyond is hung up on.

    A reader that leaves in the middle is no error: the library would print a traceback.
    """
    room = threading.BoundedSemaphore(_MOST_READERS)
    begin, answer = server.process_request, server.process_request_thread

    def process_request(request: socket.socket, address: Any) -> None:
        if not room.acquire(blocking=False):
            server.shutdown_request(request)
            return
        try:
            begin(request, address)
        except BaseException:  # there is no thread
            room.release()
            raise

    def process_request_thread(request: socket.socket, address: Any) -> None:
        limit = threading.Timer(_LONGEST_S, _hang_up, (request,))
        limit.daemon = True
        limit.start()
        try:
            answer(request, address)
        finally:
            limit.cancel()
            room.release()

    server.process_request, server.process_request_thread = process_request, process_request_thread
    server.handle_error = lambda _request, _address: None


def _hang_up(request: socket.socket) -> None:
    with suppress(OSError):  # it has ended meanwhile
        request.shutdown(socket.SHUT_RDWR)


def _with_any_version(metrics: Any) -> Any:
    """Returns the library's application, which fails where a version in `Accept` is no number."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        try:
            return metrics(environ, start_response)
        except TypeError:
            return metrics({**environ, "HTTP_ACCEPT": ""}, start_response)

    return answer


def _with_pages(pages: Mapping[str, Page], metrics: Any) -> Any:
    """Returns a WSGI application that serves pages, and metrics everywhere else."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        page = pages.get(environ["PATH_INFO"])
        if page is None or environ["REQUEST_METHOD"] != "GET":
            return metrics(environ, start_response)
        body = page.read()
        start_response("200 OK", [*page.headers, ("Content-Length", str(len(body)))])
        return [body]

    return answer


def _for_own_hosts(is_own: Callable[[str], bool], answer_all: Any) -> Any:
    """Returns a WSGI application that refuses a web page which has its name lead here."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        host = environ.get("HTTP_HOST", "")
        if is_own(host):
            return answer_all(environ, start_response)
        body = f"{host_problem(host)}\n".encode()
        head = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        start_response("403 Forbidden", head)
        return [body]

    return answer
