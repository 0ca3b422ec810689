"""Which deadline a router works to, by what kind of client asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from tests.fakes.router_process import RunningRouter, mesh_toml, running_router
from tests.fakes.triton import FakeTriton
from tiercel import AsyncClient, Client
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

# Long, and far from each other: what a busy machine takes of one does not make it another.
TASK_S = 20.0
LIBRARY_S = 100.0
REQUEST = pb2.GenerateRequest(spec=pb2.GenerationSpec(prompt="hello", task="piqa"))
Ask = Callable[[RunningRouter], Any]


@pytest_asyncio.fixture
async def triton() -> AsyncIterator[FakeTriton]:
    """A fake Triton; it keeps what it was told."""
    fake = await FakeTriton().start()
    yield fake
    await fake.stop()


async def _our_client(router: RunningRouter) -> None:
    async with AsyncClient(router.address) as client:
        await client.generate("hello", task="piqa")


async def _our_client_streaming(router: RunningRouter) -> None:
    async with AsyncClient(router.address) as client:
        async for _ in client.generate_stream("hello", task="piqa"):
            pass


async def _our_client_asking(router: RunningRouter) -> None:
    async with AsyncClient(router.address) as client:
        await client.generate("hello", task="piqa", deadline_s=40.0)


def _blocking(address: str) -> None:
    with Client(address) as client:
        client.generate("hello", task="piqa")


async def _our_blocking_client(router: RunningRouter) -> None:
    await asyncio.to_thread(_blocking, router.address)


def _bare_stub(timeout_s: float | None) -> Ask:
    return lambda router: router.stub.Generate(REQUEST, timeout=timeout_s)


@pytest.mark.parametrize(
    ("ask", "deadline_s"),
    [
        pytest.param(_our_client, TASK_S, id="our client"),
        pytest.param(_our_client_streaming, TASK_S, id="our client, streaming"),
        pytest.param(_our_blocking_client, TASK_S, id="our blocking client"),
        pytest.param(_our_client_asking, 40.0, id="our client, with a deadline"),
        pytest.param(_bare_stub(LIBRARY_S), TASK_S, id="a stub with a library's timeout"),
        pytest.param(_bare_stub(None), TASK_S, id="a stub without a timeout"),
        pytest.param(_bare_stub(10.0), 10.0, id="a stub with a timeout below the task's deadline"),
    ],
)
async def test_a_time_limit_that_nobody_asked_for_is_no_deadline(
    tmp_path: Path, triton: FakeTriton, ask: Ask, deadline_s: float
) -> None:
    """The deadline asked for counts, else the task's; a call's own limit only bounds it."""
    toml = mesh_toml([("e0", triton.address)], deadline_s=TASK_S)
    async with running_router(tmp_path, toml) as router:
        await ask(router)
    told_s = triton.received[0].timeout_us / 1e6
    # gRPC rounds the time left up, to a tenth of a second of ten.
    assert deadline_s - 5.0 < told_s <= 1.02 * deadline_s


async def test_an_answer_after_the_tasks_deadline_is_no_answer(
    tmp_path: Path, triton: FakeTriton
) -> None:
    """Thirty seconds of a library do not make a hard deadline of 0.3 s a soft one."""
    triton.default.hang = True
    toml = mesh_toml([("e0", triton.address)], deadline_s=0.3)
    async with running_router(tmp_path, toml) as router:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router.stub.Generate(REQUEST, timeout=30.0)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        counts = router.core.accounts.counts
        assert (counts.late, counts.on_time) == (1, 0)
