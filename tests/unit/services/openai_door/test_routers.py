"""Calls to routers in turn, and to the next one where one is not reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.clock import SystemClock
from services.openai_door.routers import Exchange, Routers, UnreadableError
from tests.fakes.ports import free_port
from tests.fakes.router import FakeRouter, serve
from tests.waiting import LIMIT_S, until
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

REQUEST = pb2.GenerateRequest(spec=pb2.GenerationSpec(prompt="hi", task="sort"))
STREAM = pb2.GenerateStreamRequest(spec=REQUEST.spec)


@pytest_asyncio.fixture
async def two() -> AsyncIterator[tuple[list[FakeRouter], list[str]]]:
    """Two routers and their addresses."""
    fakes = [FakeRouter(), FakeRouter()]
    served = [await serve(fake) for fake in fakes]
    yield fakes, [address for _, address in served]
    for server, _ in served:
        await server.stop(0)


def routers_at(*addresses: str) -> Routers:
    """Routers that are not checked yet."""
    return Routers(addresses, tls=None, clock=SystemClock(), check_interval_s=0.1)


def exchange(routers: Routers, limit_s: float = LIMIT_S) -> Exchange:
    """An exchange that begins now."""
    metadata = (("authorization", "Bearer k"),)
    return Exchange(routers, metadata=metadata, limit_s=limit_s, start_s=SystemClock.monotonic_s())


async def test_routers_are_called_in_turn(two: tuple[list[FakeRouter], list[str]]) -> None:
    """Each gets its share, with the caller's key and the time limit the call began with."""
    fakes, addresses = two
    routers = routers_at(*addresses)
    for _ in range(6):
        assert (await exchange(routers).answer(REQUEST)).text == "HI"
    assert [len(fake.specs) for fake in fakes] == [3, 3]
    assert fakes[0].metadata[0]["authorization"] == "Bearer k"
    assert int(fakes[0].metadata[0]["tiercel-timeout-ms"]) >= LIMIT_S * 1e3
    await routers.close()


async def test_another_router_is_asked_where_one_is_not_reached(
    two: tuple[list[FakeRouter], list[str]],
) -> None:
    """And what is not reached comes last from then on."""
    fakes, addresses = two
    routers = routers_at(f"127.0.0.1:{free_port()}", addresses[0])
    watching = asyncio.create_task(routers.watch())
    await asyncio.wait_for(routers.ready(), LIMIT_S)
    for _ in range(3):
        assert (await exchange(routers).answer(REQUEST)).text == "HI"
        piece = await exchange(routers).first_piece(STREAM)
        assert piece.chunk.text == "H"
    assert len(fakes[0].specs) == 6
    assert [router.is_serving for router in routers.in_turn()] == [True, False]
    watching.cancel()
    await routers.close()


async def test_the_only_address_may_stand_for_several_processes() -> None:
    """The one that had the request is killed; another takes the next connection there."""
    routers_of = [FakeRouter(delay_s=60.0), FakeRouter()]
    options = (("grpc.so_reuseport", 1),)
    servers = [grpc.aio.server(options=options) for _ in routers_of]
    for server, fake in zip(servers, routers_of, strict=True):
        pb2_grpc.add_RouterInferenceServiceServicer_to_server(fake, server)
    port = servers[0].add_insecure_port("127.0.0.1:0")
    await servers[0].start()
    routers = routers_at(f"127.0.0.1:{port}")
    asking = asyncio.create_task(exchange(routers).answer(REQUEST))
    await until(lambda: routers_of[0].specs, "the first has the request")
    servers[1].add_insecure_port(f"127.0.0.1:{port}")
    await servers[1].start()
    await servers[0].stop(0)
    assert (await asking).text == "HI"
    await routers.close()
    await servers[1].stop(0)


async def test_a_refusal_is_not_tried_elsewhere(two: tuple[list[FakeRouter], list[str]]) -> None:
    """A router that answered has decided for the mesh."""
    fakes, addresses = two
    for fake in fakes:
        fake.refuse = lambda spec: "DEADLINE_NOT_REACHABLE"
    routers = routers_at(*addresses)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await exchange(routers).answer(REQUEST)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sum(len(fake.specs) for fake in fakes) == 1
    await routers.close()


async def test_no_router_at_all_is_an_error_soon() -> None:
    """Nobody waits for the time limit."""
    routers = routers_at(f"127.0.0.1:{free_port()}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await exchange(routers).answer(REQUEST)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not routers.are_serving
    await routers.close()


class SlowHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers the first question for health, and no other."""

    def __init__(self) -> None:
        self.asked = 0

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        """Serves, or says nothing."""
        self.asked += 1
        if self.asked > 1:
            await asyncio.Event().wait()
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


async def test_a_router_that_is_late_with_its_health_is_not_away_at_once() -> None:
    """It may only be busy; after three questions without an answer it counts as away."""
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(SlowHealth(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    routers = routers_at(f"127.0.0.1:{port}")
    router = routers.in_turn()[0]
    found = []
    for _ in range(4):
        await router.check()
        found.append(router.is_serving)
    assert found == [True, True, True, False]
    await routers.close()
    await server.stop(0)


async def test_a_stream_is_read_to_its_completion(
    two: tuple[list[FakeRouter], list[str]],
) -> None:
    """One that ends without it is no answer."""
    _, addresses = two
    routers = routers_at(*addresses)
    call = exchange(routers)
    texts = [(await call.first_piece(STREAM)).chunk.text, (await call.next_piece()).chunk.text]
    assert texts == ["H", "I"]
    assert (await call.next_piece()).completion.tier == "large"
    with pytest.raises(UnreadableError):
        await call.next_piece()
    await routers.close()


async def test_a_cancelled_exchange_stops_the_work(
    two: tuple[list[FakeRouter], list[str]],
) -> None:
    """The router sees it; nothing is asked of another."""
    fakes, addresses = two
    for fake in fakes:
        fake.delay_s = LIMIT_S
    routers = routers_at(*addresses)
    call = exchange(routers)
    waiting = asyncio.create_task(call.answer(REQUEST))
    await until(lambda: sum(len(fake.specs) for fake in fakes) == 1, "the router has the request")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: sum(fake.cancelled_count for fake in fakes) == 1, "its work has stopped")
    with pytest.raises(asyncio.CancelledError):
        await call.answer(REQUEST)
    await routers.close()
