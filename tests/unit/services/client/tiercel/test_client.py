"""The blocking client."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.router import FakeRouter, serve
from tiercel import AsyncClient, Client, RefusedError


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


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_is_not_copied(kind: Any, copied: Callable[[object], object]) -> None:
    """A twin would end the other's connections when it is closed or forgotten."""
    client = kind("127.0.0.1:1")
    with pytest.raises(TypeError, match="Client: cannot be copied or pickled"):
        copied(client)
    if kind is Client:
        client.close()
