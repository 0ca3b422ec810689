"""Versions of the servers a mesh stands on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping

TIMEOUT_S = 2.0


async def backend_versions(addresses: Mapping[str, str]) -> dict[str, str]:
    """Asks Triton and Redis for their versions; one that does not say is left out."""
    found = {}
    metadata = await _ask(
        addresses["triton_http"], b"GET /v2 HTTP/1.1\r\nHost: triton\r\nConnection: close\r\n\r\n"
    )
    with contextlib.suppress(ValueError, KeyError):
        found["triton"] = str(json.loads(metadata.partition("\r\n\r\n")[2])["version"])
    info = await _ask(addresses["redis"], b"INFO server\r\nQUIT\r\n")
    for line in info.splitlines():
        if line.startswith("redis_version:"):
            found["redis"] = line.partition(":")[2].strip()
    return found


async def _ask(address: str, request: bytes) -> str:
    """Sends a request and reads until the server closes; empty if it does not answer in time."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(request)
                return (await reader.read()).decode(errors="replace")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return ""
