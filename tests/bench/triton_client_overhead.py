"""Measures what `TritonClient.generate` costs over a bare stub call, side by side in one run.

Both ask the same real Triton (a paced tier, one token) in turns; reported is the client process's
CPU time per request and the median latency.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.common.triton.client import TritonClient
from services.local.triton.repository.paced import PacedFleet, write_paced_repository
from services.local.triton.server.config import TritonServerConfig
from services.local.triton.server.process import TritonServer

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 6
REQUESTS = 300
PROFILE = """
name = "instant"
source = "assumed"
[tiers.small]
step_s = 0.0001
per_sequence_s = 0.0
per_prompt_token_s = 0.0
"""


async def measure(ask: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Returns CPU time per request and median latency, seconds."""
    took = []
    cpu_s = time.process_time()
    for _ in range(REQUESTS):
        started = time.perf_counter()
        await ask()
        took.append(time.perf_counter() - started)
    return (time.process_time() - cpu_s) / REQUESTS, statistics.median(took)


async def main() -> None:
    """Runs the comparison."""
    with tempfile.TemporaryDirectory() as scratch:
        profile = Path(scratch) / "instant.toml"
        profile.write_text(PROFILE)
        fleet = PacedFleet(profile=profile, tiers=("small",))
        repository = write_paced_repository(Path(scratch) / "fleet", fleet).servers[0].path
        config = TritonServerConfig(repository=repository, log_path=Path(scratch) / "log")
        async with TritonServer(config) as server, TritonClient(server.grpc_address) as client:
            await compare(server.grpc_address, client)


async def compare(address: str, client: TritonClient) -> None:
    """Takes turns and prints the medians over the rounds."""
    channel = grpc.aio.insecure_channel(address)
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = service_pb2.ModelInferRequest.FromString(
        client._request("x", "gpu0_small", "a b c", 1, 5.0, 0.0, 0, True)
    )

    async def bare() -> None:
        call = stub.ModelStreamInfer(iter((request,)), timeout=5.0)
        async for _ in call:
            pass

    async def bare_read() -> None:
        call = stub.ModelStreamInfer(timeout=5.0)
        await call.write(request)
        await call.done_writing()
        await call.read()

    async def ours() -> None:
        async for _ in client.generate("gpu0_small", "a b c", 1, timeout_s=5.0):
            pass

    ways = {"bare stub, async for": bare, "bare stub, write/read": bare_read, "TritonClient": ours}
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            results[name].append(await measure(way))
    for name, values in results.items():
        cpu_s = statistics.median(cpu for cpu, _ in values)
        latency_s = statistics.median(latency for _, latency in values)
        sys.stdout.write(f"{name:24s} CPU {1e6 * cpu_s:6.0f} us  p50 {1e6 * latency_s:6.0f} us\n")
    await channel.close()


if __name__ == "__main__":
    asyncio.run(main())
