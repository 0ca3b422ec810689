"""The clients of the endpoints that a router knows."""

from __future__ import annotations

import asyncio

from router.fleet import EndpointProtocol
from services.common.openai.client import OpenAIClient
from services.common.tiers.client import ForbiddenClient
from services.common.triton.client import TritonClient
from services.router_inference.client_pool import ClientPool
from tests.fakes.openai_server import openai_server
from tests.unit.services.router_inference.scenario import scenario

TRITON, OPENAI = EndpointProtocol.TRITON, EndpointProtocol.OPENAI


def test_one_client_per_address() -> None:
    """The same one for the same address, so that a channel is opened once."""

    async def run() -> None:
        pool = ClientPool()
        assert pool.get("127.0.0.1:1") is pool.get("127.0.0.1:1")
        assert pool.get("127.0.0.1:1") is not pool.get("127.0.0.1:2")
        await pool.close()

    asyncio.run(run())


class LeavingClient(ForbiddenClient):
    """A client that has a request under way."""

    def __init__(self) -> None:
        super().__init__("x:1")
        self.count, self.is_closed = 1, False

    @property
    def busy_count(self) -> int:
        """Is one until it is told to be none."""
        return self.count

    async def close(self) -> None:
        """Is closed."""
        self.is_closed = True


@scenario
async def test_clients_of_endpoints_that_left_are_closed_when_they_are_done() -> None:
    """Connections do not pile up while endpoints come and go; nothing under way is cut."""
    pool, gone, stays = ClientPool(), LeavingClient(), LeavingClient()
    pool._clients |= {("a:1", TRITON): gone, ("b:1", TRITON): stays}
    pool.keep({("b:1", TRITON)})
    await asyncio.sleep(60.0)
    assert not gone.is_closed
    gone.count = 0
    await asyncio.sleep(2.0)
    assert (gone.is_closed, stays.is_closed) == (True, False)
    assert list(pool._clients) == [("b:1", TRITON)]
    await pool.close()
    assert stays.is_closed


def test_a_monitor_cannot_have_prompts_sent_elsewhere() -> None:
    """Whatever a system state names, an address that is not allowed gets a client that is none."""

    async def run() -> None:
        pool = ClientPool(is_allowed=lambda address: address.startswith("127."))
        assert type(pool.get("127.0.0.1:1")) is TritonClient
        assert type(pool.get("evil.example:8001")) is ForbiddenClient
        await pool.close()

    asyncio.run(run())


async def test_an_endpoint_is_called_as_it_says() -> None:
    """One address may be known by both protocols while its endpoint is changed."""
    pool = ClientPool()
    assert type(pool.get("127.0.0.1:1", OPENAI)) is OpenAIClient
    assert type(pool.get("127.0.0.1:1", TRITON)) is TritonClient
    pool.keep({("127.0.0.1:1", OPENAI)})
    assert list(pool._clients) == [("127.0.0.1:1", OPENAI)]
    await pool.close()


async def test_a_key_is_shown_to_its_address_alone_and_can_change() -> None:
    """With the next request: nothing has to start again."""
    async with openai_server() as first, openai_server() as second:
        pool = ClientPool(api_keys={first.address: "one"})
        for key in ("one", "two"):
            pool.allow(lambda _: True, {first.address: key})
            for address in (first.address, second.address):
                client = pool.get(address, OPENAI)
                async for _ in client.generate("m", "p", 3, timeout_s=5.0):
                    pass
        shown = [
            [each.headers.get("authorization") for each in s.received] for s in (first, second)
        ]
        assert shown == [["Bearer one", "Bearer two"], [None, None]]
        await pool.close()
