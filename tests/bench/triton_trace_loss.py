"""Counts how many sampled calls Triton joins, and where the others go.

Triton 2.51 takes the text of a gRPC `traceparent` for zero-terminated, so that what lies behind it
in memory decides whether it is understood. Two servers answer the same calls: one traces what is
sampled only (as the mesh runs it), one traces everything, where the calls whose parent it
overlooked show as traces of their own.

    .venv/bin/python -m tests.bench.triton_trace_loss
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from pathlib import Path

from services.common.triton.client import TritonClient
from services.local.triton.repository.paced import PacedFleet, write_paced_repository
from services.local.triton.server.config import TritonServerConfig
from services.local.triton.server.process import TritonServer
from tests.fakes.otlp_sink import OtlpSink

ROOT = Path(__file__).resolve().parents[2]
CALLS = 600
AT_ONCE = 6
EXPORT_WAIT_S = 3.0


async def main() -> None:
    """Runs both servers in turn and prints a line for each."""
    with tempfile.TemporaryDirectory() as scratch:
        fleet = PacedFleet(profile=ROOT / "profiles" / "opt-a100.toml", tiers=("small",))
        repository = write_paced_repository(Path(scratch) / "fleet", fleet).servers[0].path
        for self_sampled in (False, True):
            await measure(repository, Path(scratch), self_sampled=self_sampled)


async def measure(repository: Path, scratch: Path, *, self_sampled: bool) -> None:
    """Sends sampled calls, one at a time and then some at once, and counts the traces."""
    sink = OtlpSink()
    config = TritonServerConfig(
        repository=repository,
        log_path=scratch / f"log-{self_sampled}",
        trace_endpoint=f"{sink.endpoint}/v1/traces",
        trace_self_sampled=self_sampled,
    )
    sent: set[str] = set()
    try:
        async with TritonServer(config) as server, TritonClient(server.grpc_address) as client:
            for width in (1, AT_ONCE):
                shares = [CALLS // width] * width
                await asyncio.gather(*(_ask(client, sent, share) for share in shares))
            await asyncio.sleep(EXPORT_WAIT_S)
    finally:
        sink.close()
    roots = [span for span in sink.spans if span.name == "InferRequest"]
    lost = len(sent - {span.trace_id for span in roots})
    orphans = sum(not span.parent_id for span in roots)
    print(
        f"Triton samples {'everything' if self_sampled else 'nothing by itself'}: of {len(sent)} "
        f"sampled calls {lost} not joined ({lost / len(sent):.1%}), {orphans} traces without parent"
    )


async def _ask(client: TritonClient, sent: set[str], count: int) -> None:
    for _ in range(count):
        trace = os.urandom(16).hex()
        sent.add(trace)
        headers = [("traceparent", f"00-{trace}-{os.urandom(8).hex()}-01")]
        prompt = "word " * random.randint(1, 200)
        async for _ in client.generate("gpu0_small", prompt, 4, timeout_s=5.0, metadata=headers):
            pass


if __name__ == "__main__":
    asyncio.run(main())
