"""One Redis, asked in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from services.common.state.errors import StateUnavailableError
from services.common.state.redis_connection import RedisConnection
from services.common.state.shared_state import RedisSharedState
from tests.conftest import RedisServer
from tests.faults.relay import Relay


async def test_redis_that_stops_and_returns(
    redis_connection: RedisConnection, redis_server: RedisServer
) -> None:
    """Calls fail with StateUnavailableError while it is away and work when it is back."""
    shared = RedisSharedState(redis_connection)
    await redis_connection.ping()
    redis_server.stop()
    try:
        for call in (redis_connection.ping, redis_connection.version, shared.load_system_state):
            with pytest.raises(StateUnavailableError):
                await call()
    finally:
        redis_server.start()
    await redis_connection.ping()
    assert await redis_connection.version()
    assert await shared.acquire_lease("publisher", "a", 1.0)


async def test_a_server_that_never_answers_costs_only_the_timeout(
    free_port: Callable[[], int],
) -> None:
    """A silent peer is a StateUnavailableError, not a hang."""

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = RedisConnection(f"redis://127.0.0.1:{port}/0", timeout_s=0.1)
    with pytest.raises(StateUnavailableError, match=r"within 0\.1 s"):
        await connection.ping()
    await connection.close()
    server.close()


def test_a_connection_that_was_reset_is_made_anew(redis_server: RedisServer) -> None:
    """The first call after a reset is answered, on the event loop that services run on."""

    async def ask() -> None:
        wire = await Relay(redis_server.url.removeprefix("redis://").partition("/")[0]).start()
        connection = RedisConnection(f"redis://{wire.address}/0", timeout_s=10.0)
        await connection.ping()
        wire.reset()
        while len(wire):
            await asyncio.sleep(0)
        await connection.ping()
        wire.refuse(True)
        wire.reset()
        with pytest.raises(StateUnavailableError):
            await connection.ping()
        await connection.close()
        await wire.close()

    uvloop.run(ask())
