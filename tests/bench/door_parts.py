"""What a request costs at the doors for gRPC: `python -m tests.bench.door_parts`.

Handlers are called in a loop, without sockets: bytes of a request in, bytes of its answer out, and
between them everything that the router does, its client of the tier included. The tier's messages
are there at once; what gRPC costs is not in it. The least of many rounds counts, so other work on
the machine hardly does.

`--beside FOLDER` takes another checkout's router in turns with this one's, each in a process of its
own, round by round. `--sockets` then starts both as routers beside a bare pass-through and tells
the CPU time of each process per request, as `tiercel bench` does. `--profile NAME` tells where the
time of one kind of request goes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import pathlib
import pstats
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import uvloop
from tritonclient.grpc import service_pb2 as kserve

from router.compiled import CACHE_VARIABLE, cache_folder
from services.bench.bench import SUITES, Bench, Server
from services.bench.gateway import begin_of_exchange, end_of_exchange
from services.bench.load import (
    PROMPT,
    SERVICE,
    Ask,
    cpu_per_request_s,
    generation,
    infer,
    streaming,
    unary,
)
from services.bench.peers import ANY_ID, INFER_WHOLE, STREAM, UNARY, answer, kserve_request
from services.bench.routers import TASK, write_settings
from services.common.interpreter import suit_requests
from services.common.settings import load_settings
from services.common.telemetry import Telemetry
from services.router_inference.app import build_app
from services.router_inference.client_pool import ClientPool
from services.router_inference.core import Core
from services.router_inference.settings import Settings
from services.router_inference.workers.place import Place
from services.router_inference.workers.siblings import NoSiblings
from tiercel.envoy.v3 import external_processor_pb2 as envoy_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

ADDRESS = "127.0.0.1:9"
TOKENS, MANY_TOKENS, EACH = 8, 256, 8
GATEWAYS_ID = "00000000-0000-4000-8000-000000000001"
ROUNDS, CALLS = 20, 40
SOCKET_ROUNDS, SOCKET_CALLS = 7, 400
DEADLINE_S = 100.0
ID_FIELD = b"\x1a" + bytes([len(ANY_ID)])
"""How the id of a request of the router's begins in its message."""
HERE = pathlib.Path(__file__).resolve()
Call = Callable[[], Awaitable[None]]


class TierCall:
    """An open call of ModelStreamInfer whose answers are there at once, as bytes.

    The client of an older checkout writes and reads messages instead.
    """

    def __init__(self, messages: Sequence[bytes]) -> None:
        """Takes the messages of every answer."""
        self._messages = messages
        self._left: Any = iter(())
        self._id = b""
        self._has_bytes = True

    async def write(self, request: Any) -> None:
        """Takes a request."""
        self._has_bytes = isinstance(request, bytes)
        if self._has_bytes:
            at = request.index(ID_FIELD) + len(ID_FIELD)
            self._id = request[at : at + len(ANY_ID)]
        else:
            request.SerializeToString()
            self._id = request.id.encode()
        self._left = iter(self._messages)

    async def read(self) -> Any:
        """Returns the next message of its answer, at the loop's next turn."""
        await asyncio.sleep(0)
        payload = next(self._left).replace(ANY_ID, self._id)
        return payload if self._has_bytes else kserve.ModelStreamInferResponse.FromString(payload)

    def done(self) -> bool:
        """Is open until it is cancelled."""
        return False

    def cancel(self) -> None:
        """Has nothing to cancel."""

    def add_done_callback(self, _: object) -> None:
        """Never ends by itself."""


class DoorCall:
    """What a handler asks of its call; what it sends is written as bytes and forgotten."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the metadata of a call."""
        return (("user-agent", "grpc-python-asyncio"),)

    def peer(self) -> str:
        """Returns who calls."""
        return "ipv4:127.0.0.1:43210"

    def time_remaining(self) -> float:
        """Returns a call's time limit."""
        return 10.0

    async def write(self, message: Any) -> None:
        """Sends a message, at the loop's next turn."""
        if not isinstance(message, bytes):
            message.SerializeToString()
        await asyncio.sleep(0)


async def only(payload: bytes) -> AsyncIterator[Any]:
    """Yields the one request of a call."""
    yield kserve.ModelInferRequest.FromString(payload)


async def told(payloads: Sequence[bytes]) -> AsyncIterator[Any]:
    """Yields what a gateway tells of an exchange, each at the loop's next turn."""
    for payload in payloads:
        await asyncio.sleep(0)
        yield envoy_pb2.ProcessingRequest.FromString(payload)


def made(folder: pathlib.Path, messages: Sequence[bytes]) -> Core:
    """Returns a router of four devices that decides by price; its tiers answer at once."""
    own = {"policy": "price", "envoy_listen": "127.0.0.1:0"}
    # However busy the machine is, nothing is late.
    path = write_settings(
        folder / "router.toml", [ADDRESS] * 4, own, deadline_s=DEADLINE_S, has_http=True
    )
    app = build_app(load_settings(Settings, path=path, environ={}))
    place = Place(router_id="bench", epoch=app.clock.wall_ns(), siblings=NoSiblings())
    pool = ClientPool(most_idle=64)
    tier: Any = pool.get(ADDRESS)
    tier._streams._open_call = lambda **_: TierCall(messages)
    return app.build_core(place, Telemetry(None, random.Random(1)), None, pool)


def calls(folder: pathlib.Path) -> dict[str, Call]:
    """Returns a function per kind of request that makes one."""
    few = made(folder, answer(TOKENS))
    many = made(folder, answer(MANY_TOKENS, EACH))
    context: Any = DoorCall()
    generate = pb2.GenerateRequest(spec=generation(TASK, TOKENS)).SerializeToString()
    whole = kserve_request(PROMPT, TASK, TOKENS, stream=False)

    async def one(core: Core) -> None:
        request = pb2.GenerateRequest.FromString(generate)
        (await core.servicer.Generate(request, context)).SerializeToString()

    async def infer_one(core: Core) -> None:
        request = kserve.ModelInferRequest.FromString(whole)
        reply: Any = await core.kserve.ModelInfer(request, context)
        if not isinstance(reply, bytes):
            reply.SerializeToString()

    exchange = (begin_of_exchange(GATEWAYS_ID), end_of_exchange())

    async def exchange_one(core: Core) -> None:
        assert core.picker is not None
        await core.picker.Process(told(exchange), context)

    def stream(core: Core, tokens: int) -> Call:
        payload = pb2.GenerateStreamRequest(spec=generation(TASK, tokens)).SerializeToString()

        async def call() -> None:
            request = pb2.GenerateStreamRequest.FromString(payload)
            await core.servicer.GenerateStream(request, context)

        return call

    def infer_stream(core: Core, tokens: int) -> Call:
        payload = kserve_request(PROMPT, TASK, tokens, stream=True)

        async def call() -> None:
            await core.kserve.ModelStreamInfer(only(payload), context)

        return call

    return {
        "Generate": lambda: one(few),
        "ModelInfer": lambda: infer_one(few),
        "Exchange": lambda: exchange_one(few),
        "GenerateStream": stream(few, TOKENS),
        "ModelStreamInfer": infer_stream(few, TOKENS),
        "GenerateStream many": stream(many, MANY_TOKENS),
        "ModelStreamInfer many": infer_stream(many, MANY_TOKENS),
    }


async def took_us(call: Call, count: int) -> float:
    """Returns the CPU time of a request, us."""
    start_s = time.thread_time()
    for _ in range(count):
        await call()
    return 1e6 * (time.thread_time() - start_s) / count


async def answer_lines() -> None:
    """Reads kinds of requests from the input, a line each, and writes what one of them took."""
    with tempfile.TemporaryDirectory() as name:
        kinds = calls(pathlib.Path(name))
        suit_requests()
        print(" ".join(kinds).replace(" many", "+many"), flush=True)
        while kind := (await asyncio.to_thread(sys.stdin.readline)).strip():
            print(await took_us(kinds[kind], CALLS), flush=True)


class Side:
    """The router of one checkout, in a process of its own."""

    def __init__(self, root: pathlib.Path) -> None:
        """Starts it."""
        self.took_us: dict[str, list[float]] = {}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE), "--answer"],
            env=environment(root),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self, told: str = "") -> str:
        """Tells it a kind of request, if any, and returns its next line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if told:
            print(told, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        """Ends it."""
        self._process.communicate("\n", timeout=30.0)


def environment(root: pathlib.Path) -> dict[str, str]:
    """Returns the variables under which Python runs what a checkout holds."""
    return {
        "PYTHONPATH": f"{root}:{root / 'services' / 'client'}",
        "PYTHONSAFEPATH": "1",
        "PATH": "/usr/bin:/bin",
        # Compiled code is named by what it was made of, so both may have it in one folder.
        CACHE_VARIABLE: str(cache_folder()),
    }


def in_a_loop(roots: Sequence[pathlib.Path], wanted: Sequence[str]) -> None:
    """Prints what a request takes in each checkout, without sockets."""
    sides = [Side(root) for root in roots]
    first = {side.line() for side in sides}
    assert len(first) == 1, f"not all decide by compiled code: {first}"
    kinds = [kind.replace("+", " ") for kind in first.pop().split()]
    kinds = [kind for kind in kinds if kind in wanted or not wanted]
    for number in range(ROUNDS + 1):
        for kind in kinds:
            for side in sides if number % 2 else sides[::-1]:
                took = float(side.line(kind))
                # The first round warms up and is not kept.
                side.took_us.setdefault(kind, []).extend([took] if number else [])
    for side in sides:
        side.end()
    print(f"us of CPU a request without sockets, least (median) of {ROUNDS} rounds of {CALLS}")
    for kind in kinds:
        told = [
            f"{min(side.took_us[kind]):7.1f} ({statistics.median(side.took_us[kind]):.1f})"
            for side in sides
        ]
        print(f"{kind:24}" + "   ".join(told))


async def with_sockets(bench: Bench, roots: Sequence[pathlib.Path], wanted: Sequence[str]) -> None:
    """Prints what a request takes in router processes beside a bare pass-through."""
    whole = pb2.GenerateRequest(spec=generation(TASK, TOKENS)).SerializeToString()
    stream = pb2.GenerateStreamRequest(spec=generation(TASK, TOKENS)).SerializeToString()
    asks: dict[str, dict[str, tuple[Ask, Server]]] = {}

    def add(kind: str, side: str, ask: Ask, server: Server) -> None:
        if kind in wanted or not wanted:
            asks.setdefault(kind, {})[side] = ask, server

    traces = await bench.start("traces", "services.bench.peers", "traces")
    for many in (False, True):
        tokens, name = (MANY_TOKENS, " many") if many else (TOKENS, "")
        spec = f"{tokens}/{EACH}" if many else str(tokens)
        backend = await bench.start(f"backend{many}", "services.bench.peers", "backend", spec)
        proxy = await bench.start(f"proxy{many}", "services.bench.peers", "proxy", backend.address)
        payload = kserve_request(PROMPT, TASK, tokens, stream=True)
        add("ModelStreamInfer" + name, "proxy", streaming(bench, proxy, STREAM, stream), proxy)
        if not many:
            unary_payload = kserve_request(PROMPT, TASK, TOKENS, stream=False)
            for kind in ("Generate", "ModelInfer"):
                add(kind, "proxy", unary(bench, proxy, UNARY, whole), proxy)
            add("GenerateStream", "proxy", streaming(bench, proxy, STREAM, stream), proxy)
        for number, root in enumerate(roots):
            side = f"router {number}"
            router = await _router(bench, f"router{number}{many}", root, backend, traces)
            add("ModelStreamInfer" + name, side, infer(bench, router, payload), router)
            if not many:
                generate = f"{SERVICE}/Generate"
                add("Generate", side, unary(bench, router, generate, whole), router)
                method = f"{SERVICE}/GenerateStream"
                add("GenerateStream", side, streaming(bench, router, method, stream), router)
                add("ModelInfer", side, unary(bench, router, INFER_WHOLE, unary_payload), router)
    took: dict[tuple[str, str], list[float]] = {}
    for number in range(SOCKET_ROUNDS + 1):
        for kind, sides in asks.items():
            for side, (ask, server) in sides.items():
                cpu_us = 1e6 * await cpu_per_request_s(ask, server, SOCKET_CALLS)
                took.setdefault((kind, side), []).extend([cpu_us] if number else [])
    print(f"us of CPU a request with sockets, median of {SOCKET_ROUNDS} rounds (least to most)")
    for kind, sides in asks.items():
        for side in sides:
            rounds = took[kind, side]
            share = [a / b for a, b in zip(took[kind, "proxy"], rounds, strict=True)]
            print(
                f"{kind:24}{side:10}{statistics.median(rounds):7.0f} ({min(rounds):.0f} to "
                f"{max(rounds):.0f}), of the proxy's rate {statistics.median(share):.3f}"
            )


async def _router(
    bench: Bench, name: str, root: pathlib.Path, backend: Server, traces: Server
) -> Server:
    config = write_settings(
        bench.folder / f"{name}.toml", [backend.address] * 4, {"policy": "price"}
    )
    variables: Mapping[str, str] = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{traces.address}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        **environment(root),
    }
    module = "services.router_inference"
    return await bench.start(name, module, "--config", str(config), variables=variables)


async def profiled(kind: str) -> None:
    """Prints where the time of a kind of request goes."""
    with tempfile.TemporaryDirectory() as name:
        call = calls(pathlib.Path(name))[kind]
        suit_requests()
        await took_us(call, CALLS)
        profile = cProfile.Profile(time.thread_time)
        with profile:
            for _ in range(20 * CALLS):
                await call()
        pstats.Stats(profile).sort_stats("tottime").print_stats(60)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.door_parts", description=__doc__)
    parser.add_argument("--beside", type=pathlib.Path, help="another checkout, with its stubs")
    parser.add_argument("--only", action="append", default=[], help="a kind of request")
    parser.add_argument("--sockets", action="store_true")
    parser.add_argument("--profile", metavar="NAME")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    roots = [*([options.beside.resolve()] if options.beside else []), HERE.parents[2]]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.answer:
            runner.run(answer_lines())
        elif options.profile:
            runner.run(profiled(options.profile))
        elif options.sockets:
            runner.run(_sockets(roots, options.only))
        else:
            in_a_loop(roots, options.only)


async def _sockets(roots: Sequence[pathlib.Path], wanted: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        async with contextlib.AsyncExitStack() as stack:
            folder = pathlib.Path(name)
            bench = Bench(frozenset(), SUITES["full"], folder, stack, lambda _, __: None)
            await with_sockets(bench, roots, wanted)


if __name__ == "__main__":
    main()
