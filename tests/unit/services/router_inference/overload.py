"""Clients that together ask for more than a device carries, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any

from router.profile import LatencyProfile, TierProfile
from services.common.errors import DomainError
from services.common.tiers.answer import TierChunk
from services.common.tiers.errors import TierOverloadedError
from tests.fakes.virtual_time import run_virtual
from tests.unit.services.router_inference.parts import Behaviour, FakePool, FakeTier, make_rig

SMALL_DEVICE = LatencyProfile(
    "small device",
    "assumed",
    {tier: TierProfile(0.02, 0.0, 0.0, max_batch=4) for tier in ("small", "medium", "large")},
)
"""Carries four answers of eight tokens at a time, 25 a second."""


class Device(FakeTier):
    """A tier that works on as many requests at a time as `SMALL_DEVICE` does; others wait."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.default = Behaviour(pieces=("a",) * 8, step_s=0.02)
        self.room = asyncio.Semaphore(4)

    async def generate(
        self, model: str, prompt: str, max_output_tokens: int, **options: Any
    ) -> AsyncGenerator[TierChunk, None]:
        """Answers when there is room."""
        try:
            await asyncio.wait_for(self.room.acquire(), options["timeout_s"])
        except TimeoutError:
            raise TierOverloadedError("QUEUE_TIMEOUT", "Request timeout expired") from None
        try:
            async for chunk in super().generate(model, prompt, max_output_tokens, **options):
                yield chunk
        finally:
            self.room.release()


def overload(
    weights: Mapping[str, float], rates_rps: Mapping[str, float], *, duration_s: float = 20.0
) -> dict[str, Counter[str]]:
    """Runs clients at their rates against one small device; returns how their requests ended.

    Args:
        weights: Clients that the settings name, with their weights; with none there are no shares.
        rates_rps: What each client asks for.
        duration_s: How long.
    """
    return run_virtual(_run(weights, rates_rps, duration_s))


async def _run(
    weights: Mapping[str, float], rates_rps: Mapping[str, float], duration_s: float
) -> dict[str, Counter[str]]:
    pool = FakePool()
    pool.tiers["127.0.0.1:9000"] = Device("127.0.0.1:9000")
    clients = [{"name": name, "weight": weight} for name, weight in weights.items()]
    rig = make_rig(policy="static-small", clients=clients, profile=SMALL_DEVICE, pool=pool)
    ends: dict[str, Counter[str]] = {name: Counter() for name in rates_rps}

    async def ask(client: str) -> None:
        job = rig.job(client=client, max_output_tokens=8)
        with suppress(DomainError):
            await rig.answer(job)
        assert job.outcome is not None
        ends[client][job.outcome.value] += 1

    async def arrive(client: str, rate_rps: float) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(int(duration_s * rate_rps)):
                group.create_task(ask(client))
                await asyncio.sleep(1.0 / rate_rps)

    await asyncio.gather(*(arrive(name, rate) for name, rate in rates_rps.items()))
    rig.assert_settled()
    return ends


def on_time_share(ends: Counter[str]) -> float:
    """Returns the share of a client's requests that was answered in time."""
    return ends["on_time"] / ends.total()
