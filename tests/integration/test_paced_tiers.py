"""Paced tiers on a real Triton: streaming, cancellation, shared clock, faults, clean end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from router.profile import parse_profile
from services.common.tiers.answer import TierChunk
from services.common.tiers.errors import (
    TierDeadlineError,
    TierInvalidError,
    TierOverloadedError,
    TierUnavailableError,
)
from services.common.triton.client import TritonClient
from services.local.triton.repository.paced import (
    PacedFleet,
    PacedRepository,
    write_paced_repository,
)
from services.local.triton.server.config import TritonServerConfig
from services.local.triton.server.process import TritonServer
from tests.integration.conftest import TIERS, PacedTriton
from tests.waiting import until

pytestmark = pytest.mark.triton

# A machine that stands still for a moment spoils a measurement; a wrong tier spoils all of them.
ATTEMPTS = 30

# One slot and slow steps, so that one long request holds the tier for seconds.
NARROW = """
name = "narrow"
source = "assumed"
[tiers.small]
step_s = 0.04
per_sequence_s = 0.0
per_prompt_token_s = 0.0
max_batch = 1
max_kv_tokens = 600
"""


@pytest_asyncio.fixture
async def client(paced_triton: PacedTriton) -> AsyncIterator[TritonClient]:
    """A client of the session's Triton."""
    async with TritonClient(paced_triton.address) as opened:
        yield opened


async def _ask(
    client: TritonClient, model: str, tokens: int = 8, prompt: str = "w", timeout_s: float = 30.0
) -> tuple[list[TierChunk], list[float]]:
    """Returns the chunks of an answer and when each of them came, seconds after sending."""
    chunks, stamps = [], []
    started = time.monotonic()
    async for chunk in client.generate(model, prompt, tokens, timeout_s=timeout_s):
        chunks.append(chunk)
        stamps.append(time.monotonic() - started)
    return chunks, stamps


async def test_every_model_is_ready_and_labelled_paced(
    client: TritonClient, paced_triton: PacedTriton
) -> None:
    """All tiers of both devices are there and say what they are."""
    assert await client.is_live()
    assert await client.is_ready()
    names = {model for entry in paced_triton.endpoints for model in entry["models"].values()}
    assert set(await client.loaded_models()) == names
    assert len(names) == 6
    for entry in paced_triton.endpoints:
        for tier, model in entry["models"].items():
            config = await client.model_config(model)
            assert (config.kind, config.tier) == ("paced", tier)
            assert config.parameters["tiercel_device"] == entry["device"]


async def test_answer_streams_token_by_token(client: TritonClient) -> None:
    """Tokens come while the answer is made, are all there, and are no model's words."""
    for _ in range(ATTEMPTS):
        chunks, stamps = await _ask(client, "gpu0_large", tokens=16)
        if stamps[0] < 0.5 * stamps[-1]:
            break
    assert sum(chunk.token_count for chunk in chunks) == 16
    assert "".join(chunk.text for chunk in chunks).split() == ["paced"] * 16
    assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].finish_reason == "length"
    assert stamps[0] < 0.5 * stamps[-1]


async def test_whole_answer_comes_in_one_piece(client: TritonClient) -> None:
    """Without streaming there is one chunk with everything."""
    chunks = [
        chunk async for chunk in client.generate("gpu0_small", "w", 5, timeout_s=30.0, stream=False)
    ]
    assert [(chunk.token_count, chunk.is_final) for chunk in chunks] == [(5, True)]


async def test_idle_latency_follows_the_profile(
    client: TritonClient, paced_triton: PacedTriton
) -> None:
    """One request on an idle device takes what the profile says, and little more."""
    profile = parse_profile(paced_triton.profile.read_text(), "profile", TIERS)
    want_s = profile.tiers["large"].unloaded_latency_s(124, 8)
    best_s = math.inf
    for _ in range(ATTEMPTS):
        best_s = min(best_s, (await _ask(client, "gpu0_large", 8, "w " * 124))[1][-1])
        if best_s < 1.5 * want_s:
            break
    assert want_s <= best_s < 1.5 * want_s


async def test_tiers_of_a_device_take_turns(client: TritonClient) -> None:
    """Three busy tiers slow each other down as one clock would; another device is not touched."""

    async def cycle_s(model: str) -> float:
        chunks, stamps = await _ask(client, model, tokens=60)
        made = sum(chunk.token_count for chunk in chunks[11:])
        return (stamps[-1] - stamps[10]) / made

    async def busy_small() -> None:
        await _ask(client, "gpu0_small", tokens=80)

    # large, medium and small steps: 10.58 + 3.93 + 1.41 ms against 10.58 ms.
    wanted = pytest.approx([15.92 / 10.58, 1.0, 1.0], rel=0.25)
    for _ in range(ATTEMPTS):
        alone = await cycle_s("gpu0_large")
        large, medium, other, _small = await asyncio.gather(
            cycle_s("gpu0_large"), cycle_s("gpu0_medium"), cycle_s("gpu1_large"), busy_small()
        )
        measured = [large / alone, medium / large, other / alone]
        if measured == wanted:
            break
    assert measured == wanted


async def test_bad_sampling_parameters_are_refused(client: TritonClient) -> None:
    """The error names the field and the limit."""
    with pytest.raises(TierInvalidError, match=r"max_tokens.*between 1 and"):
        await _ask(client, "gpu0_small", tokens=0)


async def test_unknown_model_is_unavailable(client: TritonClient) -> None:
    """A tier that is not loaded on this endpoint is one to look for elsewhere."""
    with pytest.raises(TierUnavailableError, match="MODEL_NOT_FOUND"):
        await _ask(client, "gpu7_small")


async def test_lost_device_fails_at_once_and_heals(
    client: TritonClient, paced_triton: PacedTriton
) -> None:
    """Requests under way and new ones fail with the reason; the other device serves on."""
    under_way = client.generate("gpu1_large", "w", 500, timeout_s=30.0)
    await anext(under_way)
    paced_triton.repository.set_device("gpu1", state="lost")
    try:
        with pytest.raises(TierUnavailableError, match="paced device is lost"):
            async for _ in under_way:
                pass
        with pytest.raises(TierUnavailableError, match="paced device is lost"):
            await _ask(client, "gpu1_small")
        await _ask(client, "gpu0_small")
    finally:
        paced_triton.repository.set_device("gpu1")
    chunks, _ = await _ask(client, "gpu1_small")
    assert chunks[-1].is_final


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[tuple[TritonServer, PacedRepository]]:
    """A Triton of its own with one paced tier of one slot and a queue of two."""
    (tmp_path / "narrow.toml").write_text(NARROW)
    fleet = PacedFleet(profile=tmp_path / "narrow.toml", tiers=("small",), max_queue_count=2)
    repository = write_paced_repository(tmp_path / "fleet", fleet)
    config = TritonServerConfig(
        repository=repository.servers[0].path, log_path=tmp_path / "triton.log"
    )
    with TritonServer(config) as server:
        yield server, repository


async def test_slot_life_cycle_and_clean_end(
    narrow: tuple[TritonServer, PacedRepository],
) -> None:
    """Queue limits, deadlines and cancellation on one slot; then nothing is left behind.

    One test, because a server of its own costs a start and a stop.
    """
    server, _ = narrow
    async with TritonClient(server.grpc_address) as client:
        # What is larger than the room for keys and values is refused for good.
        with pytest.raises(TierInvalidError, match="601 of 600 tokens"):
            await _ask(client, "gpu0_small", tokens=600)
        # A request of twenty seconds takes the slot.
        holder = client.generate("gpu0_small", "w", 500, timeout_s=60.0)
        await anext(holder)
        # Of four more, two may wait and two are refused.
        tasks = [asyncio.create_task(_ask(client, "gpu0_small", tokens=1)) for _ in range(4)]
        refused: set[asyncio.Task[tuple[list[TierChunk], list[float]]]] = set()
        waiting = set(tasks)
        while len(refused) < 2:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            refused |= done
        for task in refused:
            assert isinstance(task.exception(), TierOverloadedError)
            assert "maximum queue size 2" in str(task.exception())
        # Cancelling the long one frees its slot long before it would have ended.
        cancelled_s = time.monotonic()
        await holder.aclose()
        await asyncio.gather(*waiting)
        assert time.monotonic() - cancelled_s < 10.0
        # A request that waits behind another long one ends at its deadline.
        holder = client.generate("gpu0_small", "w", 500, timeout_s=60.0)
        await anext(holder)
        with pytest.raises((TierDeadlineError, TierOverloadedError)):
            await _ask(client, "gpu0_small", tokens=1, timeout_s=0.3)
        await holder.aclose()

    assert server.pid is not None
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    segments = _segments(server)
    assert len(family) > 1
    assert segments
    await server.stop_async()
    assert not any(_is_alive(process) for process in family)
    assert not _segments(server)
    server.stop()  # A second stop is harmless.


def _is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that waits to be reaped does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _segments(server: TritonServer) -> set[Path]:
    """Returns the shared-memory segments of a server."""
    return set(Path("/dev/shm").glob(f"{server.token}*"))


async def test_hung_device_is_ended_by_the_deadline(
    client: TritonClient, paced_triton: PacedTriton
) -> None:
    """Nothing waits longer than its deadline for a device that hangs."""
    paced_triton.repository.set_device("gpu1", state="hung")
    try:
        with pytest.raises((TierDeadlineError, TierOverloadedError)):
            await _ask(client, "gpu1_medium", timeout_s=0.4)
    finally:
        paced_triton.repository.set_device("gpu1")
    with contextlib.suppress(TierOverloadedError):
        await _ask(client, "gpu1_medium")
    chunks, _ = await _ask(client, "gpu1_medium")
    assert chunks[-1].is_final


async def test_statistics_count_requests(client: TritonClient) -> None:
    """Triton's counters grow with what was served."""
    before = (await client.statistics("gpu0_small"))["gpu0_small"]
    await _ask(client, "gpu0_small", tokens=2)

    async def counted() -> bool:
        after = (await client.statistics("gpu0_small"))["gpu0_small"]
        return after.success_count > before.success_count

    await until(counted, "it is counted")
    after = (await client.statistics("gpu0_small"))["gpu0_small"]
    assert after.success_count == before.success_count + 1
    assert after.fail_count == before.fail_count
