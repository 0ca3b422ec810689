"""The state exchange: one real router and one real monitor, and light clients for other routers.

A light client reports and watches as a router does and reads nothing of what it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import statistics
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

import grpc.aio
import numpy as np

from services.bench.bench import Bench, Server
from services.bench.load import open_call
from services.bench.readings import Reading
from services.bench.routers import TIERS, write_settings
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb

MONITOR = "/tiercel.load_monitor.v1.LoadMonitorService"
STATES_PER_S = 12.5
REPORT_S = 0.1
SECONDS = 20.0
LEAST_SECONDS = 0.5
SETTLE_S = 3.0
HARDLY_PROBED: Mapping[str, float] = {"gauge_interval_s": 60.0, "ready_interval_s": 60.0}
"""Probes are no part of the exchange."""
CLIENTS_BESIDE_1024 = 16
"""As many as any machine carries; a state is as large with more."""
GROWTH = ((16, 16), (16, 64), (32, 64), (16, 256))
"""Routers and endpoints of the further sizes that the full suite shows."""


class _Measured(NamedTuple):
    """One size of a mesh.

    Attributes:
        router_cores: the router's share of a core at 12.5 states a second.
        alone_cores: the same of a router without a monitor.
        monitor_cores: the monitor's share of a core, at 12.5 states a second too.
        state_bytes: of one state.
        monitor_mb: its memory.
        states_per_s: states that were published.
    """

    router_cores: float
    alone_cores: float
    monitor_cores: float
    state_bytes: float
    monitor_mb: float
    states_per_s: float


async def measure(bench: Bench) -> list[Reading]:
    """Measures both sizes, and with time enough how costs grow."""
    found: list[Reading] = []
    series: dict[str, list[tuple[float, float]]] = {"router": [], "bytes": [], "monitor": []}
    if {"state_64x64", "state_64x64_monitor"} & bench.wanted:
        for number, (routers, endpoints) in enumerate(() if bench.is_quick else GROWTH):
            bench.say(number / 8, f"{routers} routers x {endpoints} endpoints")
            _note(series, routers, endpoints, await _rounds(bench, routers, endpoints, 1))
        bench.say(0.5, "64 routers x 64 endpoints")
        rounds = await _rounds(bench, 64, 64, bench.rounds)
        _note(series, 64, 64, rounds)
        parts = _parts(rounds)
        found += [
            Reading("state_64x64", [each.router_cores for each in rounds], (), parts, "", series),
            Reading(
                "state_64x64_monitor",
                [each.monitor_cores for each in rounds],
                (),
                {**parts, "probing 64 endpoints beside it, cores": await _probing(bench, 64)},
            ),
        ]
    if "state_256x1024" in bench.wanted:
        bench.say(0.75, f"{CLIENTS_BESIDE_1024} routers x 1,024 endpoints")
        rounds = await _rounds(bench, CLIENTS_BESIDE_1024, 1_024, bench.rounds)
        note = f"with {CLIENTS_BESIDE_1024} routers: a state is as large with 256"
        cores = [each.router_cores for each in rounds]
        found.append(Reading("state_256x1024", cores, (), _parts(rounds), note))
    return found


async def _rounds(
    bench: Bench, router_count: int, endpoint_count: int, rounds: int
) -> list[_Measured]:
    """Measures one size, with servers of its own."""
    name = f"{router_count}x{endpoint_count}"
    backend = await bench.start(f"backend-{name}", "services.bench.peers", "backend", "1")
    addresses = [backend.address] * endpoint_count
    monitor = await _start_monitor(bench, name, addresses)
    router, alone = [
        await _start_router(bench, f"{kind}-{name}", addresses, address)
        for kind, address in (("router", monitor.address), ("alone", ""))
    ]
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            _Client(bench, monitor, index, endpoint_count) for index in range(router_count - 1)
        ]
        for client in clients:
            stack.push_async_callback(client.close)
        await asyncio.sleep(max(SETTLE_S * min(1.0, bench.suite.share * 10), 0.5))
        seconds = max(LEAST_SECONDS, bench.part(SECONDS) / rounds)
        return [await _round(clients, monitor, (router, alone), seconds) for _ in range(rounds)]


async def _round(
    clients: Sequence[_Client], monitor: Server, routers: Sequence[Server], seconds: float
) -> _Measured:
    loop = asyncio.get_running_loop()
    servers = (*routers, monitor)
    before = [server.cpu_s() for server in servers]
    start_s, first = loop.time(), clients[0].state_count
    await asyncio.sleep(seconds)
    taken_s = loop.time() - start_s
    router, alone, monitor_cores = (
        (server.cpu_s() - cpu_s) / taken_s for server, cpu_s in zip(servers, before, strict=True)
    )
    states_per_s = (clients[0].state_count - first) / taken_s
    # A machine that is too busy publishes fewer states, and monitors are not cheaper for that: the
    # cost is that of a state.
    slower = max(1.0, STATES_PER_S / max(states_per_s, 1e-9))
    return _Measured(
        router_cores=alone + max(0.0, router - alone) * slower,
        alone_cores=alone,
        monitor_cores=monitor_cores * slower,
        state_bytes=statistics.fmean(client.state_bytes for client in clients),
        monitor_mb=monitor.memory_mb(),
        states_per_s=states_per_s,
    )


class _Client:
    """Reports and watches as a router does."""

    def __init__(self, bench: Bench, monitor: Server, index: int, endpoint_count: int) -> None:
        """Starts at once."""
        self.state_bytes = self.state_count = 0
        self._router_id = f"light-{index}"
        self._dice = np.random.default_rng(index)
        self._candidates = [
            (tier, f"e{number}") for number in range(endpoint_count) for tier in TIERS
        ]
        watch = open_call(bench, monitor.address, "unary_stream", f"{MONITOR}/WatchSystemState")
        report = open_call(bench, monitor.address, "stream_unary", f"{MONITOR}/ReportTraffic")
        request = pb.WatchSystemStateRequest(router_id=self._router_id, epoch=1)
        self._calls = watch(request.SerializeToString()), report(self._reports())
        self._reading = asyncio.ensure_future(self._read(self._calls[0]))

    async def close(self) -> None:
        """Ends both streams."""
        for call in self._calls:
            call.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await self._reading

    async def _read(self, call: Any) -> None:
        async for message in call:
            self.state_bytes = len(message)
            self.state_count += 1

    async def _reports(self) -> AsyncIterator[bytes]:
        await asyncio.sleep(random.uniform(0.0, REPORT_S))
        for sequence in itertools.count(1):
            load = self._load(sequence)
            if sequence == 1:
                for tier, endpoint in self._candidates:
                    load.candidates.add(tier=tier, endpoint=endpoint)
            yield pb.ReportTrafficRequest(load=load).SerializeToString()
            await asyncio.sleep(REPORT_S)

    def _load(self, sequence: int) -> state_pb.RouterLoad:
        counts_C = self._dice.integers(0, 5, len(self._candidates)).astype("<f4")
        return state_pb.RouterLoad(
            router_id=self._router_id,
            epoch=1,
            sequence=sequence,
            arrival_rate_rps=10.0,
            packed_loads=state_pb.PackedLoads(
                in_flight_counts=counts_C.tobytes(),
                waiting_prompt_token_counts=(100.0 * counts_C).astype("<f4").tobytes(),
                remaining_output_token_counts=(30.0 * counts_C).astype("<f4").tobytes(),
            ),
        )


async def _probing(bench: Bench, endpoint_count: int) -> float:
    """Returns a monitor's share of a core with nothing to do but to probe at its usual pace."""
    backend = await bench.start("backend-probed", "services.bench.peers", "backend", "1")
    addresses = [backend.address] * endpoint_count
    monitor = await _start_monitor(bench, "probing", addresses, probes={})
    seconds = max(LEAST_SECONDS, bench.part(SECONDS))
    await asyncio.sleep(min(SETTLE_S, seconds))
    before_s, start_s = monitor.cpu_s(), asyncio.get_running_loop().time()
    await asyncio.sleep(seconds)
    return (monitor.cpu_s() - before_s) / (asyncio.get_running_loop().time() - start_s)


async def _start_router(bench: Bench, name: str, addresses: Sequence[str], monitor: str) -> Server:
    path = bench.folder / f"{name}.toml"
    write_settings(path, addresses, {"policy": "price"}, monitor=monitor)
    return await bench.start(name, "services.router_inference", "--config", str(path))


async def _start_monitor(
    bench: Bench,
    name: str,
    addresses: Sequence[str],
    *,
    probes: Mapping[str, float] = HARDLY_PROBED,
) -> Server:
    own = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "max_endpoints": 2_000,
        **probes,
    }
    path = bench.folder / f"monitor-{name}.toml"
    write_settings(path, addresses, {}, monitor_own=own)
    return await bench.start(f"monitor-{name}", "services.load_monitor", "--config", str(path))


def _parts(rounds: Sequence[_Measured]) -> Mapping[str, float]:
    def middle(field: str) -> float:
        return float(statistics.median(getattr(each, field) for each in rounds))

    return {
        "without a monitor": middle("alone_cores"),
        "bytes per state": middle("state_bytes"),
        "the monitor's share of a core": middle("monitor_cores"),
        "the monitor's memory, MB": middle("monitor_mb"),
        "states/s": middle("states_per_s"),
    }


def _note(
    series: Mapping[str, list[tuple[float, float]]],
    router_count: int,
    endpoint_count: int,
    rounds: Sequence[_Measured],
) -> None:
    candidates, parts = float(endpoint_count * len(TIERS)), _parts(rounds)
    series["router"].append((candidates, statistics.median(e.router_cores for e in rounds)))
    series["bytes"].append((candidates, parts["bytes per state"]))
    if endpoint_count == 64:
        series["monitor"].append((float(router_count), parts["the monitor's share of a core"]))
