"""Cheap readiness questions to the children of an embedded mesh."""

from __future__ import annotations

import asyncio
import pathlib

import httpx

from services.common.state.errors import StateUnavailableError
from services.common.state.redis_connection import RedisConnection
from services.common.triton.client import TritonClient

TIMEOUT_S = 1.0


async def redis_answers(address: str) -> bool:
    """Says whether a Redis at host:port answers PING."""
    connection = RedisConnection(f"redis://{address}", timeout_s=TIMEOUT_S)
    try:
        await connection.ping()
    except StateUnavailableError:
        return False
    finally:
        await connection.close()
    return True


async def http_ok(address: str, path: str, *, timeout_s: float | None = None) -> bool:
    """Says whether an HTTP GET at host:port gives status 200 within a time (1 s).

    The first one of a process loads the client's modules, which takes seconds on a busy machine:
    who asks once only gives it more time.
    """
    # Nothing is encrypted; the default would load every root certificate for each question.
    client = httpx.AsyncClient(trust_env=False, verify=False)  # noqa: S501
    try:
        async with (
            asyncio.timeout(TIMEOUT_S if timeout_s is None else timeout_s),
            client,
            client.stream("GET", f"http://{address}{path}") as reply,
        ):
            return reply.status_code == httpx.codes.OK
    except (httpx.HTTPError, TimeoutError):
        return False


async def triton_answers(address: str) -> bool:
    """Says whether a Triton at host:port answers gRPC.

    A Triton whose crash handler is stuck still accepts connections, so only an answer counts.
    """
    async with TritonClient(address, control_timeout_s=TIMEOUT_S) as client:
        return await client.is_live()


async def file_exists(path: pathlib.Path) -> bool:
    """Says whether a service has written its ready file."""
    return await asyncio.to_thread(path.exists)
