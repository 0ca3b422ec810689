"""What one router holds for readers that never read, idle and half-open connections, live streams.

Each case: how fast a normal client is answered before and meanwhile, how much more memory the
router takes at most, and how long after the last of them is gone everything is as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import resource
import statistics
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import psutil
from tritonclient.grpc import service_pb2 as kserve

from services.bench.bench import SUITES, Bench, Server
from services.bench.load import SERVICE, generation
from services.bench.peers import (
    ANY_ID,
    INFER,
    KSERVE,
    READY,
    SLOW,
    SLOW_INTERVAL_S,
    Handlers,
    answer,
)
from services.bench.routers import TASK, start_router
from tests.faults.relay import Relay
from tests.soak.http2 import Reader
from tests.waiting import LIMIT_S
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb

READERS, IDLE, HALF_OPEN, STREAMS = 200, 2_000, 100, 500
LONG_TOKENS, _PIECE_TOKENS = 65_536, 1_024
"""Tokens of an answer that nobody reads: more than connections take in by themselves."""
NORMAL_RPS, NORMAL_S = 25.0, 4.0
IN_TIME_S = 1.0
GONE_LIMIT_S = 60.0
"""Keepalive finds a peer that is gone after 30 s and a time limit of 10 s."""
_AT_ONCE = 100
_STEP_S = 0.1
_LOOKS = 5
_FILES_BESIDE = 1_000
_CONNECTION = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of it, and settings of the router in the place of an hour.

    Attributes:
        share: Share of the counts.
        age_s: Age at which connections end.
        deadline_s: Deadline of the streams that nobody reads.
        most_deadline_s: Longest deadline: so much longer a connection may live.
        soft_late_s: How long after it a soft request is worked on.
        stream_tokens: Tokens of a live stream, one every half second.
    """

    share: float
    age_s: float
    deadline_s: float
    most_deadline_s: float
    soft_late_s: float
    stream_tokens: int


FULL = Scale(1.0, 5.0, 3.0, 10.0, 1.0, 16)
QUICK = Scale(0.05, 1.0, 1.0, 3.0, 0.1, 3)


@dataclasses.dataclass
class Row:
    """One case.

    Attributes:
        what: What is there.
        count: How many.
        kb_each: Memory of the router for each of them, at most, kB.
        p50_before_ms: Median answer of a normal client before, milliseconds.
        p50_ms: The same meanwhile.
        in_time: Share of the normal client's requests answered within a second meanwhile.
        held_s: How long after they began, or after their peer was gone, nothing was left of them.
        calls_left: Calls and requests that the router counts at the end.
        descriptors_left: Descriptors more than before.
        mb_left: Memory more than before, MB.
    """

    what: str
    count: int
    kb_each: float = 0.0
    p50_before_ms: float = 0.0
    p50_ms: float = 0.0
    in_time: float = 0.0
    held_s: float = 0.0
    calls_left: int = 0
    descriptors_left: int = 0
    mb_left: float = 0.0


class Router:
    """The router under test, with a normal client of its own."""

    def __init__(self, server: Server) -> None:
        """Opens the normal client's connection."""
        self.address = server.address
        self._server = server
        self._channel = grpc.aio.insecure_channel(server.address, options=_CONNECTION)
        self._generate: Any = self._channel.unary_unary(f"{SERVICE}/Generate")
        status: Any = self._channel.unary_unary(
            f"{SERVICE}/GetRouterStatus",
            response_deserializer=pb.GetRouterStatusResponse.FromString,
        )
        self._status = status

    @property
    def memory_mb(self) -> float:
        """Resident memory now."""
        return self._server.memory_mb()

    @property
    def descriptors(self) -> int:
        """Descriptors now."""
        return psutil.Process(self._server.pid).num_fds()

    async def calls(self) -> int:
        """Calls that run and requests under way, as the router counts them."""
        page = await asyncio.to_thread(self._page)
        (running,) = re.findall(r"^tiercel_rpc_running ([0-9.]+)$", page, re.MULTILINE)
        status: pb.GetRouterStatusResponse = await self._status(b"", timeout=LIMIT_S)
        return int(float(running)) + status.in_flight_count

    def _page(self) -> str:
        with urllib.request.urlopen(
            f"http://{self._server.metrics}/metrics", timeout=LIMIT_S
        ) as page:
            text: str = page.read().decode()
        return text

    async def normal(self, duration_s: float) -> tuple[float, float]:
        """Asks as a normal client; returns the median answer in ms, and the share in time."""
        spec = generation(TASK, 8)
        payload = pb.GenerateRequest(spec=spec).SerializeToString()
        taken_s: list[float] = []

        async def one() -> None:
            began_s = time.perf_counter()
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._generate(payload, timeout=5.0)
                taken_s.append(time.perf_counter() - began_s)

        tasks = []
        for _ in range(max(4, round(duration_s * NORMAL_RPS))):
            tasks.append(asyncio.create_task(one()))
            await asyncio.sleep(1.0 / NORMAL_RPS)
        await asyncio.gather(*tasks)
        in_time = sum(each <= IN_TIME_S for each in taken_s) / len(tasks)
        return 1e3 * statistics.median(taken_s or [float("inf")]), in_time

    async def close(self) -> None:
        """Closes the normal client."""
        await self._channel.close()


Leave = Callable[[], Awaitable[None]] | None
"""Makes them go; None where the router ends them by itself."""
Held = contextlib.AbstractAsyncContextManager[Leave]
"""Is entered to bring them, and takes away what is left at its end."""


@contextlib.asynccontextmanager
async def readers(router: Router, count: int, scale: Scale) -> AsyncIterator[Leave]:
    """Streams whose readers never read a byte; they go by themselves."""
    spec = generation(TASK, LONG_TOKENS)
    spec.deadline.FromMilliseconds(round(1e3 * scale.deadline_s))
    payload = pb.GenerateStreamRequest(spec=spec).SerializeToString()
    opened = [Reader() for _ in range(count)]
    for reader in opened:
        await reader.connect(router.address)
        await reader.ask(f"{SERVICE}/GenerateStream", payload)

    yield None
    for reader in opened:
        await reader.close()


@contextlib.asynccontextmanager
async def idle(router: Router, count: int, _: Scale) -> AsyncIterator[Leave]:
    """Connections on which nothing is asked; the router ends them by their age."""
    opened = [Reader() for _ in range(count)]
    for first in range(0, count, _AT_ONCE):
        await asyncio.gather(
            *(reader.connect(router.address) for reader in opened[first : first + _AT_ONCE])
        )

    yield None
    for reader in opened:
        await reader.close()


@contextlib.asynccontextmanager
async def half_open(router: Router, count: int, scale: Scale) -> AsyncIterator[Leave]:
    """Streams whose client is cut off without a word."""
    relay = await Relay(router.address).start()
    async with _streams(relay.address, count, scale, connections=count):

        async def cut() -> None:
            relay.there.flows.clear()
            relay.back.flows.clear()

        yield cut
    await relay.close()


@contextlib.asynccontextmanager
async def streams(router: Router, count: int, scale: Scale) -> AsyncIterator[Leave]:
    """Streams that are read as they come, to their end."""
    async with _streams(router.address, count, scale, connections=4) as reading:

        async def end() -> None:
            await asyncio.gather(*reading)

        yield end


@contextlib.asynccontextmanager
async def _streams(
    address: str, count: int, scale: Scale, *, connections: int
) -> AsyncIterator[list[asyncio.Task[int]]]:
    spec = generation(TASK, scale.stream_tokens)
    spec.prompt = SLOW.decode() * 96
    spec.deadline.FromMilliseconds(round(1e3 * scale.most_deadline_s))
    payload = pb.GenerateStreamRequest(spec=spec).SerializeToString()
    channels = [grpc.aio.insecure_channel(address, options=_CONNECTION) for _ in range(connections)]
    methods: list[Any] = [each.unary_stream(f"{SERVICE}/GenerateStream") for each in channels]

    async def read(number: int) -> int:
        return sum([1 async for _ in methods[number % connections](payload, timeout=60.0)])

    reading = [asyncio.create_task(read(number)) for number in range(count)]
    try:
        yield reading
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for channel in channels:
            await channel.close()


@dataclasses.dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        what: What is there, for the table.
        bring: Brings them.
        is_waited_for: Whether the quick form too waits until nothing is left of them.
    """

    what: str
    bring: Callable[[Router, int, Scale], Held]
    is_waited_for: bool = True


CASES = (
    (Case("streams whose readers never read (320 kB each)", readers), READERS),
    (Case("idle connections", idle), IDLE),
    (Case("half-open connections with a live stream", half_open, is_waited_for=False), HALF_OPEN),
    (Case("live streams", streams), STREAMS),
)


async def measure(folder: pathlib.Path, scale: Scale, say: Say) -> list[Row]:
    """Runs every case on one router."""
    _allow_files(2 * IDLE + _FILES_BESIDE)
    async with contextlib.AsyncExitStack() as stack:
        bench = Bench(frozenset(), SUITES["full"], folder, stack, lambda _, text: say(text))
        backend = await stack.enter_async_context(_backend())
        own = {
            "policy": "price",
            "max_output_tokens": LONG_TOKENS,
            "max_connection_age_s": scale.age_s,
            "max_deadline_s": scale.most_deadline_s,
            "soft_late_s": scale.soft_late_s,
            "lease_s": 1.0,
        }
        router = Router(await start_router(bench, "router", [backend] * 4, own=own))
        stack.push_async_callback(router.close)
        await router.normal(NORMAL_S * scale.share)
        rows = []
        for case, count in CASES:
            wanted = max(8, round(count * scale.share))
            rows.append(await _one(router, case, wanted, scale))
            say(f"{rows[-1]}")
    return rows


async def _one(router: Router, case: Case, count: int, scale: Scale) -> Row:
    row = Row(case.what, count)
    row.p50_before_ms, _ = await router.normal(NORMAL_S * scale.share)
    before_descriptors = await _usual_descriptors(router)
    before_mb = router.memory_mb
    highest_mb = before_mb

    async def watch() -> None:
        nonlocal highest_mb
        while True:
            highest_mb = max(highest_mb, router.memory_mb)
            await asyncio.sleep(_STEP_S)

    watching = asyncio.create_task(watch())
    began_s = time.monotonic()
    async with case.bring(router, count, scale) as let_go:
        row.p50_ms, row.in_time = await router.normal(NORMAL_S * scale.share)
        if let_go is not None:
            await let_go()
            began_s = time.monotonic()
        if case.is_waited_for or scale is FULL:
            await _what_is_left(router, before_descriptors)
            row.held_s = time.monotonic() - began_s
    watching.cancel()
    row.calls_left, row.descriptors_left = await _what_is_left(router, before_descriptors)
    row.kb_each = 1e3 * (highest_mb - before_mb) / count
    row.mb_left = router.memory_mb - before_mb
    return row


async def _usual_descriptors(router: Router) -> int:
    """Returns the descriptors while the router is asked how it is, as `_what_is_left` asks it.

    Once would not do: the asking connection ends by age too, and may be gone at that moment.
    """
    found = []
    for _ in range(_LOOKS):
        await router.calls()
        found.append(router.descriptors)
        await asyncio.sleep(_STEP_S)
    return max(found)


async def _what_is_left(router: Router, descriptors: int) -> tuple[int, int]:
    """Waits until nothing is left of a case; returns calls and descriptors beyond those before."""
    give_up_s = time.monotonic() + GONE_LIMIT_S
    while True:
        calls, more = await router.calls(), router.descriptors - descriptors
        if (not calls and more <= 0) or time.monotonic() > give_up_s:
            return calls, more
        await asyncio.sleep(_STEP_S)


@functools.cache
def _answer(token_count: int, each: int) -> list[bytes]:
    return answer(token_count, each)


async def _infer(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
    """Answers as many tokens as are asked for, slowly where the prompt says so."""
    async for payload in requests:
        request = kserve.ModelInferRequest.FromString(payload)
        tokens = json.loads(request.raw_input_contents[2][4:])["max_tokens"]
        own_id = request.id.encode()
        for message in _answer(tokens, min(tokens, _PIECE_TOKENS) if tokens > 1_000 else 1):
            yield message.replace(ANY_ID, own_id)
            if SLOW in payload:
                await asyncio.sleep(SLOW_INTERVAL_S)


async def _yes(_: bytes, __: Any) -> bytes:
    return READY


@contextlib.asynccontextmanager
async def _backend() -> AsyncIterator[str]:
    """Serves a Triton of no work in this process; yields its address."""
    methods: dict[str, Any] = {
        f"{KSERVE}/{name}": grpc.unary_unary_rpc_method_handler(_yes)
        for name in ("ServerLive", "ServerReady", "ModelReady")
    }
    methods[INFER] = grpc.stream_stream_rpc_method_handler(_infer)
    server: grpc.aio.Server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handlers(methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0.0)


def _allow_files(count: int) -> None:
    """Raises the limit of open files of this process and its children, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
