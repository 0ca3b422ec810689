"""A router under half load for long, then with idle connections and live streams.

Memory, errors and what is counted as under way are read from the router itself. Connections are
real ones, each with a channel of its own.
"""

from __future__ import annotations

import asyncio
import math
import resource
import statistics
import time
from collections.abc import Awaitable
from typing import Any

import grpc
import grpc.aio

from services.bench.bench import Bench, Server
from services.bench.load import SERVICE, Ask, cpu_per_request_s, generation, unary
from services.bench.peers import SLOW, SLOW_INTERVAL_S
from services.bench.readings import Reading
from services.bench.routers import TASK, start_router
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

SECONDS, QUICK_SECONDS = 600.0, 50.0
IDLE, STREAMS = 2_000, 500
TOKENS = 8
WARM_UP_SHARE = 0.2
CONNECT_AT_ONCE = 100
STREAM_DEADLINE_S = 60.0
SETTLE_S = 10.0
_FILES_BESIDE = 1_000
_MOST_WORDS = 80


async def measure(bench: Bench) -> list[Reading]:
    """Soaks one router."""
    bench.say(0.0, "starting servers")
    _allow_files(2 * IDLE + _FILES_BESIDE)
    backend = await bench.start("backend", "services.bench.peers", "backend", str(TOKENS))
    traces = await bench.start("traces", "services.bench.peers", "traces")
    # What is remembered of ended requests must be full within the warm-up of a short run too.
    memory_count = 500 if bench.is_quick else 10_000
    own = {"policy": "price", "feedback_memory_count": memory_count}
    router = await start_router(
        bench, "router", [backend.address] * 4, own=own, traces=traces.address
    )
    payload = pb2.GenerateRequest(spec=generation(TASK, TOKENS)).SerializeToString()
    ask = unary(bench, router, f"{SERVICE}/Generate", payload)
    cpu_s = await cpu_per_request_s(ask, router, math.ceil(bench.part(1_000)))
    seconds = bench.part(QUICK_SECONDS if bench.is_quick else SECONDS)
    soak = _Soak(bench, router, ask, seconds)
    await soak.run(0.5 / cpu_s)
    memory_mb = statistics.median(soak.late_mb)
    channels = await soak.idle(math.ceil(bench.part(IDLE)))
    idle_mb = router.memory_mb()
    streams_mb = await soak.streams(math.ceil(bench.part(STREAMS)))
    await soak.check(channels)
    in_flight = await _in_flight(router)
    parts = {
        "seconds": seconds,
        "requests/s": 0.5 / cpu_s,
        "requests": float(soak.request_count),
        "idle connections": float(len(channels)),
        "kB per idle connection": 1e3 * (idle_mb - memory_mb) / len(channels),
        "streams at once": float(math.ceil(bench.part(STREAMS))),
        "MB with idle connections and streams": streams_mb,
    }
    note = "; ".join(f"{reason}: {count}" for reason, count in soak.errors.items())
    return [
        Reading("soak", [memory_mb], [statistics.median(soak.early_mb)], parts),
        Reading("soak_errors", [float(sum(soak.errors.values()))], note=note),
        Reading("soak_in_flight", [float(in_flight)]),
    ]


class _Soak:
    """Counts what goes wrong, and notes the router's memory."""

    def __init__(self, bench: Bench, router: Server, ask: Ask, seconds: float) -> None:
        self.errors: dict[str, int] = {}
        self.request_count = 0
        self.early_mb: list[float] = []
        self.late_mb: list[float] = []
        self._bench = bench
        self._router = router
        self._ask = ask
        self._seconds = seconds

    async def run(self, rate_rps: float) -> None:
        """Sends requests at a rate, and notes the memory after warm-up and at the end."""
        start_s, tasks = time.perf_counter(), set()
        noted_s = start_s
        while (now_s := time.perf_counter()) < start_s + self._seconds:
            task = asyncio.create_task(self._count(self._ask()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            self.request_count += 1
            share = (now_s - start_s) / self._seconds
            if now_s - noted_s > self._seconds / 100.0:
                noted_s = now_s
                self._bench.say(0.8 * share, f"half load: {self.request_count:,} requests")
                if share > WARM_UP_SHARE:
                    early = share < WARM_UP_SHARE + 0.1
                    self.early_mb += [self._router.memory_mb()] if early else []
                    self.late_mb += [self._router.memory_mb()] if share > 0.9 else []
            due_s = start_s + self.request_count / rate_rps
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        await asyncio.gather(*tasks)

    async def idle(self, count: int) -> list[grpc.aio.Channel]:
        """Opens connections on which nothing is asked."""
        channels = []
        for number in range(count):
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
            channel = grpc.aio.insecure_channel(self._router.address, options=options)
            self._bench.stack.push_async_callback(channel.close)
            channels.append(channel)
            if len(channels) % CONNECT_AT_ONCE == 0 or number == count - 1:
                self._bench.say(0.8 + 0.1 * number / count, f"{number + 1} connections")
                fresh = channels[-CONNECT_AT_ONCE:]
                await asyncio.gather(*(self._count(each.channel_ready()) for each in fresh))
        return channels

    async def streams(self, count: int) -> float:
        """Reads slow streams, all at once; returns the router's memory while they live, MB."""
        self._bench.say(0.9, f"{count} streams")
        spec = generation(TASK, TOKENS)
        spec.prompt = SLOW.decode() * 96
        spec.deadline.FromSeconds(int(STREAM_DEADLINE_S))
        payload = pb2.GenerateStreamRequest(spec=spec).SerializeToString()
        channel = grpc.aio.insecure_channel(self._router.address)
        self._bench.stack.push_async_callback(channel.close)
        call: Any = channel.unary_stream(
            f"{SERVICE}/GenerateStream",
            response_deserializer=pb2.GenerateStreamResponse.FromString,
        )

        async def read() -> None:
            tokens = 0
            async for message in call(payload, timeout=STREAM_DEADLINE_S):
                tokens += message.chunk.token_count
            if tokens != TOKENS:
                self._note(f"a stream of {tokens} tokens instead of {TOKENS}")

        reading = asyncio.gather(*(self._count(read()) for _ in range(count)))
        await asyncio.sleep(0.75 * TOKENS * SLOW_INTERVAL_S)
        memory_mb = self._router.memory_mb()
        await reading
        return memory_mb

    async def check(self, channels: list[grpc.aio.Channel]) -> None:
        """Asks on up to 200 of the idle connections whether they still serve."""
        asked = channels[:: max(1, len(channels) // 200)]
        calls: list[Any] = [channel.unary_unary(f"{SERVICE}/GetRouterStatus") for channel in asked]
        await asyncio.gather(*(self._count(call(b"", timeout=10.0)) for call in calls))

    async def _count(self, call: Awaitable[object]) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            self._note(f"{error.code().name} ({(error.details() or '')[:_MOST_WORDS]})")

    def _note(self, reason: str) -> None:
        self.errors[reason] = self.errors.get(reason, 0) + 1


async def _in_flight(router: Server) -> int:
    """Asks the router what is under way until it is nothing, for `SETTLE_S` at most."""
    count = 0
    async with grpc.aio.insecure_channel(router.address) as channel:
        status: Any = channel.unary_unary(
            f"{SERVICE}/GetRouterStatus",
            response_deserializer=pb2.GetRouterStatusResponse.FromString,
        )
        for _ in range(int(SETTLE_S / 0.1)):
            count = (await status(b"", timeout=5.0)).in_flight_count
            if not count:
                break
            await asyncio.sleep(0.1)
    return int(count)


def _allow_files(count: int) -> None:
    """Raises the limit of open files of this process and its children, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
