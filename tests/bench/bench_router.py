"""Measures what the router costs beside bare grpc.aio servers, in turns, in one run.

`Route` beside an echo; `Generate` and `GenerateStream` beside a pass-through in front of the same
fake backend. Each server is a process of its own; in every round every server gets the same load.
Reported per server: requests per second at a fixed number in flight, CPU time of the server's
process per request (one core carries its inverse; it suffers less from other load than the rest),
and the median and 99th percentile latency of single requests. Nothing is asserted.

    python -m tests.bench.bench_router [--rounds 5] [--requests 600] [--tokens 8] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import uvloop

from tests.bench.router_peers import STREAM, UNARY
from tests.fakes.router_process import mesh_toml, router_process
from tests.unit.deploy.manifests import ROOT
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

SERVICE = "/tiercel.router_inference.v1.RouterInferenceService"
IN_FLIGHT = 16
SINGLE_REQUESTS = 100
Ask = Callable[[], Awaitable[object]]


@dataclass
class Subject:
    """One server under one kind of load.

    Attributes:
        name: Its name in the table.
        ask: Sends one request.
        process: The server's process.
        reference: Subject it is compared with; empty for none.
        rps: Throughput per round.
        cpu_s: CPU seconds of the process per request, per round.
        p50_s: Median latency of single requests, per round.
        p99_s: 99th percentile of the same.
    """

    name: str
    ask: Ask
    process: psutil.Process
    reference: str = ""
    rps: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    p50_s: list[float] = field(default_factory=list)
    p99_s: list[float] = field(default_factory=list)

    async def round(self, request_count: int) -> None:
        """Takes one measurement of everything."""
        cpu_s, start_s = _cpu_s(self.process), time.perf_counter()
        left = iter(range(request_count))

        async def worker() -> None:
            for _ in left:
                await self.ask()

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        self.rps.append(request_count / (time.perf_counter() - start_s))
        self.cpu_s.append((_cpu_s(self.process) - cpu_s) / request_count)
        took = []
        for _ in range(SINGLE_REQUESTS):
            start_s = time.perf_counter()
            await self.ask()
            took.append(time.perf_counter() - start_s)
        took.sort()
        self.p50_s.append(took[len(took) // 2])
        self.p99_s.append(took[int(len(took) * 0.99)])


def _cpu_s(process: psutil.Process) -> float:
    """Returns the CPU time of all threads; the scheduler's own account, exact to nanoseconds."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def peer(stack: ExitStack, *arguments: str) -> tuple[str, str, psutil.Process]:
    """Starts a bare server; returns its address, its trace sink's and its process."""
    command = [sys.executable, "-m", "tests.bench.router_peers", *arguments]
    process = stack.enter_context(
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
    )
    assert process.stdin is not None
    stack.callback(process.stdin.close)
    assert process.stdout is not None
    address, _, sink = process.stdout.readline().rstrip("\n").partition(" ")
    return address, sink, psutil.Process(process.pid)


def unary(address: str, method: str, payload: bytes, stack: list[grpc.aio.Channel]) -> Ask:
    """Returns a function that makes one unary call, bytes in and out."""
    channel = grpc.aio.insecure_channel(address)
    stack.append(channel)
    call: Any = channel.unary_unary(method)

    async def ask() -> object:
        return await call(payload, timeout=10.0)

    return ask


def streaming(address: str, method: str, payload: bytes, stack: list[grpc.aio.Channel]) -> Ask:
    """Returns a function that makes one server-streaming call."""
    channel = grpc.aio.insecure_channel(address)
    stack.append(channel)
    call: Any = channel.unary_stream(method)

    async def ask() -> object:
        last = b""
        async for message in call(payload, timeout=10.0):
            last = message
        return last

    return ask


async def measure(arguments: argparse.Namespace) -> list[Subject]:
    """Starts everything, takes turns, returns the measurements."""
    spec = pb2.GenerationSpec(prompt="word " * 96, task="piqa", max_output_tokens=arguments.tokens)
    generate = pb2.GenerateRequest(spec=spec).SerializeToString()
    stream = pb2.GenerateStreamRequest(spec=spec).SerializeToString()
    route = pb2.RouteRequest(task="piqa", prompt_token_count=120).SerializeToString()
    channels: list[grpc.aio.Channel] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend, sink, _ = peer(stack, "backend", str(arguments.tokens))
        echo, _, echo_process = peer(stack, "echo")
        proxy, _, proxy_process = peer(stack, "proxy", backend)
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": sink,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
        endpoints = [(f"e{index}", backend) for index in range(arguments.devices)]
        own = f'policy = "{arguments.policy}"\nlease_s = 1.0\nmax_leases_per_client = 65536\n'
        own += f"stream_tiers = {str(not arguments.whole).lower()}"
        toml = mesh_toml(endpoints, router=own)
        toml = toml.replace("default_deadline_s = 0.5", "default_deadline_s = 5.0")
        router = stack.enter_context(
            router_process(folder, toml, environ=environ if arguments.telemetry else None)
        )
        process = psutil.Process(router.process.pid)
        subjects = [
            Subject("echo", unary(echo, UNARY, route, channels), echo_process),
            Subject(
                "Route", unary(router.address, f"{SERVICE}/Route", route, channels), process, "echo"
            ),
            Subject("proxy unary", unary(proxy, UNARY, generate, channels), proxy_process),
            Subject(
                "Generate",
                unary(router.address, f"{SERVICE}/Generate", generate, channels),
                process,
                "proxy unary",
            ),
            Subject("proxy stream", streaming(proxy, STREAM, stream, channels), proxy_process),
            Subject(
                "GenerateStream",
                streaming(router.address, f"{SERVICE}/GenerateStream", stream, channels),
                process,
                "proxy stream",
            ),
        ]
        for subject in subjects:
            await subject.round(100)
            for values in (subject.rps, subject.cpu_s, subject.p50_s, subject.p99_s):
                values.clear()
        for _ in range(arguments.rounds):
            for subject in subjects:
                await subject.round(arguments.requests)
        for channel in channels:
            await channel.close()
    return subjects


def show(subjects: list[Subject]) -> dict[str, dict[str, float]]:
    """Prints the table, medians with their spread over the rounds; returns the medians."""
    by_name = {subject.name: subject for subject in subjects}
    table: dict[str, dict[str, float]] = {}
    names = ("", "req/s", "CPU us/req", "least", "p50 us", "p99 us")
    head = f"{names[0]:<16}" + "".join(f"{name:>16}" for name in names[1:]) + "  beside reference"
    print(head)
    for subject in subjects:
        cells, medians = [], {}
        rows = (
            ("rps", subject.rps, 1.0),
            ("cpu_us", subject.cpu_s, 1e6),
            ("least_cpu_us", [min(subject.cpu_s)], 1e6),
            ("p50_us", subject.p50_s, 1e6),
            ("p99_us", subject.p99_s, 1e6),
        )
        for key, values, scale in rows:
            median = statistics.median(values) * scale
            spread = (max(values) - min(values)) * scale / 2.0
            medians[key] = median
            cells.append(f"{median:.0f} ±{spread:.0f}" if len(values) > 1 else f"{median:.0f}")
        tail = ""
        if subject.reference:
            other = by_name[subject.reference]
            rps = statistics.median(a / b for a, b in zip(subject.rps, other.rps, strict=True))
            cpu = statistics.median(b / a for a, b in zip(subject.cpu_s, other.cpu_s, strict=True))
            medians["rps_ratio"], medians["core_ratio"] = rps, cpu
            least = min(other.cpu_s) / min(subject.cpu_s)
            medians["least_core_ratio"] = least
            tail = (
                f"  {rps:.2f} of its req/s, {cpu:.2f} of its req/CPU s ({least:.2f} at the least)"
            )
        table[subject.name] = medians
        print(f"{subject.name:<16}" + "".join(f"{cell:>16}" for cell in cells) + tail)
    return table


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--policy", default="price")
    parser.add_argument("--whole", action="store_true", help="tiers answer Generate in one piece")
    parser.add_argument("--no-telemetry", dest="telemetry", action="store_false")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        table = show(runner.run(measure(arguments)))
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
