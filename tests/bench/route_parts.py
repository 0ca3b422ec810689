"""What a Route request costs, part by part: `python -m tests.bench.route_parts`.

The handler is called in a loop, without sockets: the least of many rounds, so other work on the
machine hardly counts. Then a router process stands beside a bare echo with 1 to 256 requests under
way: the more come together, the more of them find the processor's caches warm.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as sdk_encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.bench.bench import SUITES, Bench
from services.bench.load import SERVICE, cpu_per_request_s, unary
from services.bench.peers import UNARY
from services.bench.routers import TASK, start_router, write_settings
from services.common.clock import SystemClock
from services.common.log import get_logger
from services.common.settings import load_settings
from services.common.span_encoding import encode_spans
from services.common.telemetry import Telemetry
from services.common.telemetry_setup import setup_telemetry
from services.router_inference.app import build_app
from services.router_inference.client_pool import ClientPool
from services.router_inference.core import Core
from services.router_inference.settings import Settings
from services.router_inference.workers.place import Place
from services.router_inference.workers.siblings import NoSiblings
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

ADDRESS = "127.0.0.1:9"
REQUEST = pb2.RouteRequest(task=TASK, prompt_token_count=120)
ROUNDS, COUNT = 100, 100
UNDER_WAY = (1, 16, 64, 256)
LEASE_S = 100.0
"""By how much the clock is put forward to end every lease."""


class Call:
    """What a handler asks of its call, answered at once."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the metadata of a call."""
        return (("user-agent", "grpc-python-asyncio"),)

    def peer(self) -> str:
        """Returns who calls."""
        return "ipv4:127.0.0.1:43210"


class LateClock(SystemClock):
    """A clock that can be put forward."""

    ahead_s = 0.0

    def monotonic_s(self) -> float:
        """Returns seconds of the monotonic clock, and how far it was put forward."""
        return time.monotonic() + self.ahead_s


def made(folder: pathlib.Path, telemetry: Telemetry) -> Core:
    """Returns a router of four devices that decides by price."""
    path = write_settings(folder / "router.toml", [ADDRESS] * 4, {"policy": "price"})
    app = build_app(load_settings(Settings, path=path, environ={}))
    place = Place(router_id="bench", epoch=app.clock.wall_ns(), siblings=NoSiblings())
    return app.build_core(place, telemetry, None, ClientPool())


async def handler_us(core: Core) -> tuple[float, float]:
    """Returns the least time of a request, message to message, and of its lease's end, us."""
    payload, call = REQUEST.SerializeToString(), Call()
    servicer, leases = core.servicer, core.leases
    leases._clock = clock = LateClock()
    asked, ended = [], []
    for _ in range(ROUNDS):
        start_s = time.thread_time()
        for _ in range(COUNT):
            reply = await servicer.Route(pb2.RouteRequest.FromString(payload), call)  # type: ignore[arg-type]
            reply.SerializeToString()
        asked.append(time.thread_time() - start_s)
        clock.ahead_s = LEASE_S
        start_s = time.thread_time()
        leases.expire()
        ended.append(time.thread_time() - start_s)
        clock.ahead_s = 0.0
    return 1e6 * min(asked) / COUNT, 1e6 * min(ended) / COUNT


def encoding_us(encode: Callable[[list[ReadableSpan]], Any], spans: list[ReadableSpan]) -> float:
    """Returns the least time to write the spans of one request, us."""
    took = []
    for _ in range(20):
        start_s = time.thread_time()
        encode(spans).SerializePartialToString()
        took.append(time.thread_time() - start_s)
    return 1e6 * min(took) / len({span.context.trace_id for span in spans if span.context})


async def in_a_loop(folder: pathlib.Path) -> None:
    """Prints what the handler and its spans take without sockets."""
    asked, ended = await handler_us(made(folder, Telemetry(None, random.Random(1))))
    print(f"Route handler, untraced: {asked:.1f} us; end of its lease: {ended:.1f} us")
    kept = InMemorySpanExporter()
    telemetry = setup_telemetry(
        "bench", environ={}, rng=random.Random(1), log=get_logger("bench"), exporter=kept
    )
    every = await handler_us(made(folder, telemetry))
    telemetry.close()
    more = sum(every) - asked - ended
    spans = list(kept.get_finished_spans())[:512]
    print(f"its spans, every request traced: {more:.1f} us more")
    print(f"writing them: {encoding_us(encode_spans, spans):.1f} us a request")
    print(f"  by the SDK's encoder: {encoding_us(sdk_encode_spans, spans):.1f} us")


async def beside_an_echo(bench: Bench) -> None:
    """Prints the CPU time of a router process and of an echo, by requests under way."""
    payload = REQUEST.SerializeToString()
    echo = await bench.start("echo", "services.bench.peers", "echo")
    router = await start_router(bench, "router", [ADDRESS] * 4, own={"policy": "price"})
    asks = {
        "echo": (unary(bench, echo, UNARY, payload), echo),
        "Route": (unary(bench, router, f"{SERVICE}/Route", payload), router),
    }
    for under_way in UNDER_WAY:
        took: dict[str, list[float]] = {name: [] for name in asks}
        for _ in range(9):
            for name, (ask, server) in asks.items():
                took[name].append(1e6 * await cpu_per_request_s(ask, server, 512, under_way))
        least = {name: statistics.median(values) for name, values in took.items()}
        print(
            f"{under_way} under way: echo {least['echo']:.0f} us, Route {least['Route']:.0f} us, "
            f"{least['Route'] - least['echo']:.0f} us more"
        )


async def main() -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        await in_a_loop(folder)
        async with contextlib.AsyncExitStack() as stack:
            await beside_an_echo(
                Bench(frozenset(), SUITES["full"], folder, stack, lambda _, __: None)
            )


if __name__ == "__main__":
    asyncio.run(main())
