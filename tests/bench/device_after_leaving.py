"""How soon a device is free again when its request is rescued or cancelled.

python -m tests.bench.device_after_leaving [--rounds 20]

A router keeps calls to Triton open from one request to the next. Beside it stands one that makes a
call for each request (`tier_idle_streams = 0`). Both are in front of one real Triton, whose large
tier has a single slot. A request takes the slot, a probe waits for it in Triton's queue, and the
time until the probe's first token tells when the device was free. Routers take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio

from services.common.triton.client import TritonClient
from services.local.triton.repository.paced import (
    PacedFleet,
    PacedRepository,
    write_paced_repository,
)
from services.local.triton.server.config import TritonServerConfig
from services.local.triton.server.process import TritonServer
from tests.fakes.router_process import mesh_toml, router_process
from tests.unit.deploy.manifests import ROOT
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

KEPT, EACH = "kept calls", "a call for each request"
IDLE = {KEPT: 64, EACH: 0}
TIERS = ("small", "large")
SLOW_DOWN, SLOW_AFTER_S, PROBE_AFTER_S = 10.0, 0.15, 0.3
RESCUED_TOKENS, RESCUE_DEADLINE_S = 48, 1.0
CANCELLED_TOKENS, CANCEL_DEADLINE_S = 700, 30.0
LIMIT_S = 60.0
ANSWERS, AT_ONCE = 320, 16
"""From which a router learns how long they are."""


def write_files(folder: Path) -> tuple[Path, PacedRepository]:
    """Writes a profile whose large tier has one slot, and its repository; returns both."""
    text = (ROOT / "profiles" / "opt-a100.toml").read_text(encoding="utf-8")
    head, large = text.split("[tiers.large]")
    profile = folder / "one-slot.toml"
    one = re.sub(r"max_batch = \d+", "max_batch = 1", large, count=1)
    profile.write_text(f"{head}[tiers.large]{one}", encoding="utf-8")
    fleet = PacedFleet(profile=profile, tiers=TIERS, sharing="own")
    return profile, write_paced_repository(folder / "fleet", fleet)


def toml_of(entries: list[dict[str, Any]], profile: Path, idle: int) -> str:
    """Returns a router's settings: the largest tier first, and rescue by the profile alone."""
    own = (
        f'policy = "static-large"\ntier_idle_streams = {idle}\nlearn_slowness = false\n'
        "safety_pessimism = 0.7"
    )
    text = mesh_toml([], router=own)
    text = re.sub(r'profile = ".*"', f'profile = "{profile}"', text)
    text = re.sub(r"tiers = \[.*\]", 'tiers = ["small", "large"]', text, count=1)
    head, rest = text.split("[router_inference]\n")
    for entry in entries:
        head += f'[[mesh.endpoints]]\nname = "{entry["name"]}"\naddress = "{entry["address"]}"\n'
        head += f'device = "{entry["device"]}"\ntiers = ["{entry["tiers"][0]}"]\n'
        model = entry.get("models", {}).get(entry["tiers"][0])
        head += f'models = {{ {entry["tiers"][0]} = "{model}" }}\n' if model else ""
    return f"{head}[router_inference]\n{rest}"


async def first_token_s(client: TritonClient, model: str) -> float:
    """Returns when a probe's first token came, monotonic seconds."""
    async for _ in client.generate(model, "w", 1, timeout_s=LIMIT_S):
        return time.monotonic()
    raise RuntimeError("the probe has no answer")


async def learn_length(stub: Any) -> None:
    """Shows a router how long answers are: one that should be done by now is not rescued."""
    spec = pb2.GenerationSpec(prompt="w", task="piqa", max_output_tokens=RESCUED_TOKENS)
    spec.tier = "small"
    spec.deadline.FromSeconds(int(CANCEL_DEADLINE_S))
    request = pb2.GenerateRequest(spec=spec)
    for _ in range(ANSWERS // AT_ONCE):
        await asyncio.gather(*(stub.Generate(request, timeout=LIMIT_S) for _ in range(AT_ONCE)))


async def rescued(stub: Any, client: TritonClient, model: str, device: Any) -> tuple[float, bool]:
    """Returns seconds from a request's start to the probe's token, and whether it was rescued."""
    spec = pb2.GenerationSpec(prompt="w", task="piqa", max_output_tokens=RESCUED_TOKENS)
    spec.deadline.FromMilliseconds(int(1e3 * RESCUE_DEADLINE_S))
    began_s = time.monotonic()
    call = asyncio.ensure_future(stub.Generate(pb2.GenerateRequest(spec=spec), timeout=LIMIT_S))
    await asyncio.sleep(SLOW_AFTER_S)
    device(SLOW_DOWN)
    await asyncio.sleep(PROBE_AFTER_S - SLOW_AFTER_S)
    try:
        free_s = await first_token_s(client, model)
        response = await call
    finally:
        device(1.0)
    return free_s - began_s, bool(response.completion.rescued)


async def cancelled(stub: Any, client: TritonClient, model: str) -> float:
    """Returns seconds from the caller's cancel to the probe's token."""
    spec = pb2.GenerationSpec(prompt="w", task="piqa", max_output_tokens=CANCELLED_TOKENS)
    spec.tier = "large"
    spec.deadline.FromSeconds(int(CANCEL_DEADLINE_S))
    call = stub.GenerateStream(pb2.GenerateStreamRequest(spec=spec), timeout=LIMIT_S)
    for _ in range(3):
        await call.read()
    probe = asyncio.ensure_future(first_token_s(client, model))
    await asyncio.sleep(PROBE_AFTER_S)
    left_s = time.monotonic()
    call.cancel()
    return await probe - left_s


async def measure(folder: Path, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Returns the times by what happened and kind of call, seconds, and prints each."""
    profile, repository = write_files(folder)
    config = TritonServerConfig(
        repository=repository.servers[0].path, log_path=folder / "triton.log"
    )
    found: dict[tuple[str, str], list[float]] = {}
    async with AsyncExitStack() as stack:
        server = stack.enter_context(TritonServer(config))
        entries = repository.servers[0].endpoints(server.grpc_address, server.metrics_address)
        [large] = [entry for entry in entries if entry["tiers"] == ["large"]]
        model = large.get("models", {}).get("large", "large")
        stubs = {}
        for name, idle in IDLE.items():
            place = folder / str(idle)
            place.mkdir()
            router = stack.enter_context(router_process(place, toml_of(entries, profile, idle)))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(router.address))
            stubs[name] = pb2_grpc.RouterInferenceServiceStub(channel)
        client = await stack.enter_async_context(TritonClient(server.grpc_address))

        def device(slow_down: float) -> None:
            repository.set_device(large["device"], slow_down=slow_down)

        for stub in stubs.values():
            await learn_length(stub)
        for number in range(rounds + 1):
            for name, stub in stubs.items():
                took_s, is_rescued = await rescued(stub, client, model, device)
                if not is_rescued:
                    raise RuntimeError("a request was not rescued, so its time says nothing")
                left_s = await cancelled(stub, client, model)
                if number:  # the first round warms up
                    found.setdefault(("rescue", name), []).append(took_s)
                    found.setdefault(("cancel", name), []).append(left_s)
                    print(f"{number}/{rounds} {name}: {took_s:.3f} s, {left_s:.3f} s", flush=True)
    return found


def main() -> None:
    """Runs it and prints medians and spreads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder), given.rounds))
    for (what, name), times_s in found.items():
        low, middle, high = (1e3 * each for each in statistics.quantiles(times_s, n=4))
        print(f"{what:<8}{name:<26}{middle:7.1f} ms, quartiles {low:.1f} to {high:.1f}")


if __name__ == "__main__":
    main()
