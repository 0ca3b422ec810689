"""The blocking client."""

from __future__ import annotations

import asyncio
import threading

from tests.fakes.router import FakeRouter, serve
from tiercel import Client, RefusedError


async def test_the_sync_client_works_from_plain_code() -> None:
    """Blocking calls work beside a running loop, and errors and streams come through."""
    router = FakeRouter(refuse=lambda spec: "TOO_LATE" if spec.prompt == "no" else "")
    server, address = await serve(router)

    def use() -> tuple[str, int, str]:
        with Client(address) as client:
            text = client.generate("ab", task="sort").text
            events = list(client.generate_stream("ab", task="sort"))
            try:
                client.generate("no", task="sort")
            except RefusedError as error:
                return text, len(events), error.reason
        return text, len(events), ""

    before = threading.active_count()
    assert await asyncio.to_thread(use) == ("AB", 3, "TOO_LATE")
    await server.stop(0)
    assert threading.active_count() <= before + 2
