"""What happens below the calls: connections that end by age, and proxies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.fakes.router import FakeRouter, serve
from tiercel import AsyncClient, UnavailableError

AGES = (("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 5_000))


async def test_connections_that_end_by_age_fail_no_call() -> None:
    """Unary calls and streams go on over many ends of the connection."""
    router = FakeRouter(delay_s=0.02)
    server, address = await serve(router, options=AGES)
    loop = asyncio.get_running_loop()
    end_s = loop.time() + 1.5

    async def caller(client: AsyncClient, kind: str) -> AsyncIterator[str]:
        while loop.time() < end_s:
            if kind == "unary":
                yield (await client.generate("ab", task="sort")).text
            else:
                events = [event async for event in client.generate_stream("ab", task="sort")]
                yield "".join(event.text for event in events)

    async def collect(client: AsyncClient, kind: str) -> list[str]:
        return [text async for text in caller(client, kind)]

    async with AsyncClient(address) as client:
        kinds = ["unary", "stream"] * 8
        found = await asyncio.gather(*(collect(client, kind) for kind in kinds))
    await server.stop(0)
    answers = [text for texts in found for text in texts]
    assert len(router.peers) > 3, "the connection has hardly ended"
    assert set(answers) == {"AB"}


PROXY = "http://127.0.0.1:1"
FOR_ADDRESSES = {
    "GRPC_ADDRESS_HTTP_PROXY": "127.0.0.1:1",
    "GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES": "127.0.0.0/8,::1/128",
}


@pytest.mark.parametrize(
    "variables",
    [{"http_proxy": PROXY}, {"https_proxy": PROXY}, {"grpc_proxy": PROXY}, FOR_ADDRESSES],
)
async def test_a_proxy_of_the_environment_is_used_only_if_told(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls go to the router itself whatever proxy the environment names."""
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    server, address = await serve(FakeRouter())
    async with AsyncClient(address) as client:
        assert (await client.generate("ab", task="sort")).text == "AB"
    async with AsyncClient(address, use_proxy=True, timeout_s=1.0) as client:
        with pytest.raises(UnavailableError):
            await client.generate("ab", task="sort")
    await server.stop(0)
