"""A device whose tiers take turns, in plain Python: makes requests of known costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from router.profile import TierProfile
from trainer.profiling.served_fit import Served

SMALL = TierProfile(0.003, 0.0004, 2e-5, max_batch=8, overhead_s=0.002)
LARGE = TierProfile(0.012, 0.0009, 9e-5, max_batch=8, overhead_s=0.003)
COSTS = {"small": SMALL, "large": LARGE}


@dataclass(eq=False)
class Job:
    """One request on the device."""

    tier: str
    sent_s: float
    prompt: int
    output: int
    made: int = 0
    first_s: float = math.inf


def served(
    costs: Mapping[str, TierProfile],
    rate_rps: float,
    count: int,
    *,
    seed: int = 0,
    device: str = "d",
    jitter_s: float = 0.0,
) -> list[Served]:
    """Returns requests that came at random, iteration by iteration; tokens are seen a little late.

    Args:
        costs: of each tier; requests go to one at random.
        rate_rps: requests per second.
        count: of requests.
        seed: of the draws.
        device: its name.
        jitter_s: most that the first and the last token are seen too late, seconds.
    """
    rng = np.random.default_rng(seed)
    tiers = list(costs)
    times = np.cumsum(rng.exponential(1.0 / rate_rps, count))
    coming = [
        Job(
            tiers[int(rng.integers(len(tiers)))], float(at_s), int(rng.integers(20, 900)),
            int(rng.integers(4, 16)),
        )
        for at_s in times
    ]  # fmt: skip
    waiting: dict[str, list[Job]] = {tier: [] for tier in tiers}
    running: dict[str, list[Job]] = {tier: [] for tier in tiers}
    done: list[Served] = []
    now_s, turn = 0.0, 0

    def arrive() -> None:
        # What is sent needs half of its overhead to come to the device.
        while coming and coming[0].sent_s + 0.5 * costs[coming[0].tier].overhead_s <= now_s:
            job = coming.pop(0)
            waiting[job.tier].append(job)

    while len(done) < count:
        arrive()
        busy = [tier for tier in tiers if waiting[tier] or running[tier]]
        if not busy:
            now_s = coming[0].sent_s + 0.5 * costs[coming[0].tier].overhead_s
            continue
        turn += 1
        tier = next(t for k in range(len(tiers)) if (t := tiers[(turn + k) % len(tiers)]) in busy)
        turn = tiers.index(tier)
        cost = costs[tier]
        room = cost.max_batch - len(running[tier])
        joined, waiting[tier] = waiting[tier][:room], waiting[tier][room:]
        running[tier] += joined
        now_s += cost.step_s + cost.per_sequence_s * len(running[tier])
        now_s += cost.per_prompt_token_s * sum(job.prompt for job in joined)
        for job in list(running[tier]):
            job.made += 1
            seen_s = now_s + 0.5 * cost.overhead_s + float(rng.uniform(0.0, jitter_s))
            if job.made == 1:
                job.first_s = seen_s
            if job.made == job.output:
                running[tier].remove(job)
                done.append(
                    Served(
                        tier,
                        device,
                        job.prompt,
                        job.output,
                        job.sent_s,
                        job.first_s,
                        max(seen_s, job.first_s),
                        is_complete=True,
                        is_certain=True,
                    )
                )
    return done
