"""Questions to children of a mesh."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.common.mesh_settings import EndpointSettings
from services.local import endpoint_checks, probes


async def test_redis_and_http_probes_say_no_to_silence() -> None:
    """A port where nobody listens is not ready."""
    assert not await probes.redis_answers("127.0.0.1:1")
    assert not await probes.http_ok("127.0.0.1:1", "/")


async def test_a_page_that_comes_slowly_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor asks once; the first question of a process loads the client's modules."""
    go_on = asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async def is_there(*_: Any) -> tuple[bool, list[Any]]:
        return True, []

    monkeypatch.setattr(probes, "TIMEOUT_S", 0.01)
    monkeypatch.setattr(endpoint_checks, "_triton", is_there)
    server = await asyncio.start_server(answer, "127.0.0.1")
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    entry = EndpointSettings(
        name="e", address="127.0.0.1:1", tiers=("small",), metrics_address=address
    )
    async with server:
        assert not await probes.http_ok(address, "/metrics", timeout_s=0.01)
        asyncio.get_running_loop().call_later(0.2, go_on.set)
        (found,) = await endpoint_checks.examine_endpoint(entry, None)
    assert found.level == "good"
