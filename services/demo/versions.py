"""Versions of the servers a mesh stands on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import httpx

from services.common.state.errors import StateUnavailableError
from services.common.state.redis_connection import RedisConnection

TIMEOUT_S = 2.0


async def backend_versions(addresses: Mapping[str, str]) -> dict[str, str]:
    """Asks Triton and Redis for their versions; one that does not say is left out."""
    found = {}
    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
        async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S) as client:
            reply = await client.get(f"http://{addresses['triton_http']}/v2")
            found["triton"] = str(reply.json()["version"])
    connection = RedisConnection(f"redis://{addresses['redis']}", timeout_s=TIMEOUT_S)
    with contextlib.suppress(StateUnavailableError):
        found["redis"] = await connection.version()
    await connection.close()
    return found
