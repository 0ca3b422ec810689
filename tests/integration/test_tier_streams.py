"""Calls that are kept open from one request to the next, against a real Triton."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.common.tiers.answer import TierChunk
from services.common.tiers.errors import TierInvalidError, TierUnavailableError
from services.common.triton.client import TritonClient
from services.local.triton.repository.paced import PacedFleet, write_paced_repository
from services.local.triton.server.config import TritonServerConfig
from services.local.triton.server.process import TritonServer
from tests.integration.conftest import PacedTriton
from tests.unit.deploy.manifests import ROOT
from tests.waiting import until

pytestmark = pytest.mark.triton
MODEL = "gpu0_small"


@pytest_asyncio.fixture
async def client(paced_triton: PacedTriton) -> AsyncIterator[TritonClient]:
    """A client of the session's Triton that keeps calls open."""
    async with TritonClient(paced_triton.address, most_idle_streams=16) as opened:
        yield opened


async def _ask(client: TritonClient, tokens: int = 4, model: str = MODEL) -> list[TierChunk]:
    return [chunk async for chunk in client.generate(model, "w", tokens, timeout_s=30.0)]


async def test_requests_of_all_models_share_the_calls(client: TritonClient) -> None:
    """Eight at a time, two hundred in all, on eight calls; every answer is whole."""
    left = iter(range(200))

    async def worker() -> None:
        for number in left:
            chunks = await _ask(client, 1 + number % 5, f"gpu{number % 2}_small")
            assert sum(chunk.token_count for chunk in chunks) == 1 + number % 5

    await asyncio.gather(*(worker() for _ in range(8)))
    assert client.stream_count == 8


async def test_a_bad_and_a_cancelled_request_harm_no_other(client: TritonClient) -> None:
    """Both end alone, and their calls with them."""
    await asyncio.gather(*(_ask(client) for _ in range(4)))
    others = [asyncio.create_task(_ask(client, 40)) for _ in range(2)]
    bad = asyncio.create_task(_ask(client, 100_000))
    left = client.generate(MODEL, "w", 500, timeout_s=30.0)
    await anext(left)
    await left.aclose()
    with pytest.raises(TierInvalidError):
        await bad
    assert [chunks[-1].is_final for chunks in await asyncio.gather(*others)] == [True, True]
    await until(lambda: client.stream_count == 2, "the other two calls have ended")


@pytest.fixture
def own_triton(tmp_path: Path) -> Iterator[TritonServer]:
    """A Triton of its own, to be ended."""
    fleet = PacedFleet(profile=ROOT / "profiles" / "opt-a100.toml", tiers=("small",))
    repository = write_paced_repository(tmp_path / "fleet", fleet)
    config = TritonServerConfig(
        repository=repository.servers[0].path, log_path=tmp_path / "triton.log"
    )
    with TritonServer(config) as server:
        yield server


async def test_killed_triton_fails_what_is_under_way(own_triton: TritonServer) -> None:
    """Requests fail with the endpoint as the cause; idle calls are gone before anybody asks."""
    async with TritonClient(own_triton.grpc_address, most_idle_streams=16) as client:
        await asyncio.gather(*(_ask(client) for _ in range(3)))
        under_way = client.generate(MODEL, "w", 500, timeout_s=30.0)
        await anext(under_way)
        assert own_triton.pid is not None
        os.kill(own_triton.pid, signal.SIGKILL)
        with pytest.raises(TierUnavailableError, match="UNAVAILABLE"):
            async for _ in under_way:
                pass
        await until(lambda: client.stream_count == 0, "every call has ended")
        with pytest.raises(TierUnavailableError, match="UNAVAILABLE"):
            await _ask(client)


async def test_idle_calls_do_not_hold_up_the_end_of_triton(own_triton: TritonServer) -> None:
    """It ends by itself, without being killed, while calls wait for a next request."""
    async with TritonClient(own_triton.grpc_address, most_idle_streams=16) as client:
        await asyncio.gather(*(_ask(client) for _ in range(3)))
        assert client.stream_count == 3
        assert own_triton.pid is not None
        began_s = time.monotonic()
        await own_triton.stop_async()
        assert time.monotonic() - began_s < own_triton.config.exit_timeout_s
        await until(lambda: client.stream_count == 0, "every call has ended")
