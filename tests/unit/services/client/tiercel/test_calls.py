"""Calls that are given up: whoever gives them up keeps nothing of them."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from services.common.clock import SystemClock
from services.openai_door.routers import Exchange, Routers
from tests.fakes.router import FakeRouter, serve
from tests.waiting import LIMIT_S, until
from tiercel import AsyncClient
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

AT_ONCE, ROUNDS, WARM_UP = 25, 8, 3
MOST_BYTES = 250
"""What may be left of a call, with the part of the fake router, which shares the process. By a
call's own `cancel` it is 1,100 bytes."""

GiveUp = Callable[[int], Awaitable[None]]


class _Heap(ctypes.Structure):
    """What `mallinfo2` returns: ten numbers, of which the eighth is what is in use."""

    _fields_ = [(f"number_{place}", ctypes.c_size_t) for place in range(1, 11)]


def used_bytes() -> int:
    """Returns how much of the C library's heap is in use: no collector looks into it."""
    tell = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if tell is None:
        pytest.skip("this C library does not say how much is in use")
    tell.restype = _Heap
    gc.collect()
    return int(tell().number_8)


@pytest_asyncio.fixture
async def router() -> AsyncIterator[FakeRouter]:
    """A router that does not answer in time, and remembers no request."""
    fake = FakeRouter(delay_s=LIMIT_S)
    server, _ = await serve(fake)
    yield fake
    await server.stop(0)


async def left_by_each(router: FakeRouter, give_up: GiveUp) -> float:
    """Returns how many bytes are left of each call that is given up, once it has warmed up."""
    before = 0
    for number in range(WARM_UP + ROUNDS):
        if number == WARM_UP:
            before = used_bytes()
        router.cancelled_count = 0
        await give_up(AT_ONCE)
        await until(lambda: router.cancelled_count == AT_ONCE, "the calls have ended")
        router.specs.clear()
        router.metadata.clear()
        router.time_left_s.clear()
    return (used_bytes() - before) / (ROUNDS * AT_ONCE)


async def all_there(router: FakeRouter, count: int) -> None:
    """Waits until the router has all of the requests."""
    await until(lambda: len(router.specs) == count, "the calls reach the router")


async def test_the_client_keeps_nothing_of_a_call_whose_caller_is_cancelled(
    router: FakeRouter,
) -> None:
    """For instance by `asyncio.timeout`."""
    async with AsyncClient(router.address, connections=1) as client:

        async def give_up(count: int) -> None:
            callers = [asyncio.create_task(client.generate("ab")) for _ in range(count)]
            await all_there(router, count)
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers)

        assert await left_by_each(router, give_up) < MOST_BYTES


async def test_the_door_keeps_nothing_of_a_request_whose_client_left(router: FakeRouter) -> None:
    """Its exchange is cancelled, by a callback of its connection."""
    routers = Routers([router.address], tls=None, clock=SystemClock(), check_interval_s=1.0)
    request = pb2.GenerateRequest(spec=pb2.GenerationSpec(prompt="ab"))

    async def give_up(count: int) -> None:
        start_s = SystemClock.monotonic_s()
        exchanges = [
            Exchange(routers, metadata=(), limit_s=LIMIT_S, start_s=start_s) for _ in range(count)
        ]
        callers = [asyncio.create_task(each.answer(request)) for each in exchanges]
        await all_there(router, count)
        for each in exchanges:
            each.cancel()
        await asyncio.wait(callers)
        assert all(caller.cancelled() for caller in callers)

    assert await left_by_each(router, give_up) < MOST_BYTES
    await routers.close()
