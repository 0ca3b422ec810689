"""A command line without a mesh of this machine, and with a fake router."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.router import FakeRouter, serve


@pytest.fixture(autouse=True)
def no_mesh(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mesh of this machine is found by accident."""
    monkeypatch.setenv("TIERCEL_STATE", str(tmp_path))
    monkeypatch.delenv("TIERCEL_MESH", raising=False)


@pytest.fixture
def router() -> Iterator[tuple[FakeRouter, str]]:
    """A fake router in a thread of its own, because commands block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    fake = FakeRouter(refuse=lambda spec: "TOO_LATE" if spec.prompt == "rev:no=" else "")
    server, address = asyncio.run_coroutine_threadsafe(serve(fake), loop).result()
    yield fake, address
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
