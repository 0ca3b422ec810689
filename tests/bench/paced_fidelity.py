"""Compares live paced tiers with the formula they follow: `python tests/bench/paced_fidelity.py`.

Three settings, each on a real Triton: one request on an idle device; three tiers kept busy on one
device; an open-loop Poisson stream on one device, replayed with the same arrival times through a
small event simulation written apart from the engine. Prints errors in percent of the formula.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from router.profile import LatencyProfile, TierProfile, parse_profile
from services.common.triton.client import TritonClient
from services.local.triton.repository.paced import PacedFleet, write_paced_repository
from services.local.triton.server.config import TritonServerConfig
from services.local.triton.server.process import TritonServer

ROOT = Path(__file__).resolve().parents[2]
TIERS = ("small", "medium", "large")
PROMPT_TOKENS = 124
OUTPUT_TOKENS = 8
PROMPT = "word " * PROMPT_TOKENS


def iteration_s(tier: TierProfile, batch: int, prompt_tokens: int) -> float:
    """Returns the profile's time of one iteration."""
    return tier.step_s + tier.per_sequence_s * batch + tier.per_prompt_token_s * prompt_tokens


def replay(profile: LatencyProfile, arrivals: list[tuple[float, str]]) -> list[float]:
    """Returns the latency of each arrival (time, tier), sorted by time, on one shared device."""
    waiting: dict[str, list[int]] = {tier: [] for tier in TIERS}
    running: dict[str, list[list[int]]] = {tier: [] for tier in TIERS}
    since = dict.fromkeys(TIERS, 0.0)  # when the tier's work became available
    latency = [0.0] * len(arrivals)
    clock, upcoming = 0.0, 0
    while upcoming < len(arrivals) or any(waiting.values()) or any(running.values()):
        while upcoming < len(arrivals) and arrivals[upcoming][0] <= clock:
            at, tier = arrivals[upcoming]
            if not waiting[tier] and not running[tier]:
                since[tier] = at
            waiting[tier].append(upcoming)
            upcoming += 1
        ready = [tier for tier in TIERS if waiting[tier] or running[tier]]
        if not ready:
            clock = arrivals[upcoming][0]
            continue
        tier = min(ready, key=lambda name: since[name])
        costs = profile.tiers[tier]
        prompt_tokens = 0
        while waiting[tier] and len(running[tier]) < costs.max_batch:
            if prompt_tokens and prompt_tokens + PROMPT_TOKENS > costs.max_prompt_tokens_per_step:
                break
            running[tier].append([waiting[tier].pop(0), OUTPUT_TOKENS])
            prompt_tokens += PROMPT_TOKENS
        clock += iteration_s(costs, len(running[tier]), prompt_tokens)
        for entry in running[tier]:
            entry[1] -= 1
            if entry[1] == 0:
                latency[entry[0]] = clock - arrivals[entry[0]][0]
        running[tier] = [entry for entry in running[tier] if entry[1]]
        since[tier] = clock
    return latency


async def ask(client: TritonClient, tier: str, stream: bool = True) -> float:
    """Returns the latency of one request."""
    started = time.monotonic()
    async for _ in client.generate(
        f"gpu0_{tier}", PROMPT, OUTPUT_TOKENS, timeout_s=60.0, stream=stream
    ):
        pass
    return time.monotonic() - started


async def idle(client: TritonClient, profile: LatencyProfile) -> None:
    """One request at a time on an idle device."""
    for tier in TIERS:
        took = [await ask(client, tier) for _ in range(12)][2:]
        want = profile.tiers[tier].unloaded_latency_s(PROMPT_TOKENS, OUTPUT_TOKENS)
        report(
            f"idle {tier}", statistics.mean(took), want, f"sd {1e3 * statistics.stdev(took):.2f} ms"
        )


async def co_running(
    client: TritonClient, profile: LatencyProfile, batch: int, rounds: int
) -> None:
    """Every tier answers `batch` long requests at once; a token each takes a cycle."""
    tokens = 60

    async def stamps(tier: str) -> list[float]:
        """Returns when each token of one long request came."""
        seen: list[float] = []
        async for chunk in client.generate(f"gpu0_{tier}", "word", tokens, timeout_s=120.0):
            seen += [time.monotonic()] * chunk.token_count
        return seen

    for _ in range(rounds):
        results = await asyncio.gather(*(stamps(tier) for tier in TIERS for _ in range(batch)))
        want = sum(iteration_s(profile.tiers[tier], batch, 0) for tier in TIERS)
        for index, tier in enumerate(TIERS):
            seen = results[index * batch]
            cycle = (seen[-5] - seen[5]) / (len(seen) - 10)
            report(f"co-running x{batch} {tier} cycle", cycle, want)


async def poisson(
    client: TritonClient, profile: LatencyProfile, rate_rps: float, count: int, stream: bool
) -> None:
    """Open-loop arrivals (rate 0: all at once); the replay gets the times really achieved."""
    draw = random.Random(7)
    began = time.monotonic() + 0.2
    due, plan = 0.0, []
    for _ in range(count):
        due += draw.expovariate(rate_rps) if rate_rps else 0.0
        plan.append((due, draw.choices(TIERS, (0.5, 0.3, 0.2))[0]))

    async def one(at: float, tier: str) -> tuple[float, str, float]:
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        sent = time.monotonic() - began
        return sent, tier, await ask(client, tier, stream)

    live = sorted(await asyncio.gather(*(one(at, tier) for at, tier in plan)))
    want = replay(profile, [(sent, tier) for sent, tier, _ in live])
    took = [latency for *_, latency in live]
    lag = statistics.mean(sent - at for (sent, *_), (at, _) in zip(live, plan, strict=True))
    note = f"client lag {1e3 * lag:.2f} ms"
    kind = ("stream" if stream else "whole") if rate_rps else f"burst of {count}"
    report(
        f"poisson {rate_rps:.0f}/s {kind} mean", statistics.mean(took), statistics.mean(want), note
    )
    for tier in TIERS:
        pairs = [(t, w) for (_, name, t), w in zip(live, want, strict=True) if name == tier]
        report(
            f"poisson {rate_rps:.0f}/s {kind} {tier} mean",
            statistics.mean(t for t, _ in pairs),
            statistics.mean(w for _, w in pairs),
        )
    p99 = (statistics.quantiles(took, n=100)[98], statistics.quantiles(want, n=100)[98])
    report(f"poisson {rate_rps:.0f}/s {kind} p99", *p99)


def report(name: str, got_s: float, want_s: float, note: str = "") -> None:
    """Prints one line of the table."""
    error = 100.0 * (got_s / want_s - 1.0)
    sys.stdout.write(
        f"{name:42s} {1e3 * got_s:9.2f} ms {1e3 * want_s:9.2f} ms {error:+6.1f} %  {note}\n"
    )
    sys.stdout.flush()


async def main() -> None:
    """Runs the three settings at one time scale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--count", type=int, default=600, help="requests of the open-loop part")
    parser.add_argument("--rates", default="40,100", help="requests per unscaled second")
    options = parser.parse_args()
    scale = options.time_scale
    path = ROOT / "profiles" / "opt-a100.toml"
    profile = parse_profile(path.read_text(), str(path), TIERS).scaled(scale)
    with tempfile.TemporaryDirectory() as scratch:
        fleet = PacedFleet(profile=path, tiers=TIERS, time_scale=scale)
        repository = write_paced_repository(Path(scratch) / "fleet", fleet).servers[0].path
        log = Path(scratch) / "log"
        config = TritonServerConfig(repository=repository, log_path=log)
        async with TritonServer(config) as server, TritonClient(server.grpc_address) as client:
            await idle(client, profile)
            await co_running(client, profile, 1, 1)
            await co_running(client, profile, 8, 1)
            await poisson(client, profile, 0.0, 192, False)
            for rate in options.rates.split(","):
                for stream in (True, False):
                    await poisson(client, profile, float(rate) / scale, options.count, stream)
        lines = [line for line in log.read_text().splitlines() if "lateness" in line]
        sys.stdout.write("\n".join(line.split("] ", 1)[1] for line in lines) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
