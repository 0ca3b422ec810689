"""A command line without a mesh of this machine, and with a fake router."""

from __future__ import annotations

import asyncio
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc.aio
import pytest

from tests.fakes.router import FakeRouter, serve
from tests.fakes.triton import FakeTriton
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as monitor_grpc


@pytest.fixture(autouse=True)
def no_mesh(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mesh of this machine is found by accident."""
    monkeypatch.setenv("TIERCEL_STATE", str(tmp_path))
    for variable in ("TIERCEL_MESH", "TIERCEL_CONFIG"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def aside() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own, because commands block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def router(aside: asyncio.AbstractEventLoop) -> Iterator[tuple[FakeRouter, str]]:
    """A fake router."""
    fake = FakeRouter(refuse=lambda spec: "TOO_LATE" if spec.prompt == "rev:no=" else "")
    server, address = asyncio.run_coroutine_threadsafe(serve(fake), aside).result()
    yield fake, address
    asyncio.run_coroutine_threadsafe(server.stop(0), aside).result()


@pytest.fixture
def serve_monitor(aside: asyncio.AbstractEventLoop) -> Iterator[Callable[[Any], str]]:
    """Serves a fake monitor until the end of the test; returns its address."""
    servers: list[grpc.aio.Server] = []

    async def start(fake: Any) -> str:
        server = grpc.aio.server()
        monitor_grpc.add_LoadMonitorServiceServicer_to_server(fake, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield lambda fake: asyncio.run_coroutine_threadsafe(start(fake), aside).result()
    for server in servers:
        asyncio.run_coroutine_threadsafe(server.stop(0), aside).result()


@pytest.fixture
def triton(aside: asyncio.AbstractEventLoop) -> Iterator[FakeTriton]:
    """A fake endpoint whose models say nothing of themselves."""
    fake = asyncio.run_coroutine_threadsafe(FakeTriton().start(), aside).result()
    yield fake
    asyncio.run_coroutine_threadsafe(fake.stop(), aside).result()


@pytest.fixture
def foreign_mesh(triton: FakeTriton, tmp_path: pathlib.Path) -> pathlib.Path:
    """A settings file, without monitor, of tiers that are not ours and stand in no order."""
    path = tmp_path / "mesh.toml"
    path.write_text(
        '[mesh]\ntiers = ["mini", "big"]\nprofile = "none.toml"\nquality = "none.toml"\n'
        '[[mesh.tasks]]\nname = "capital"\ndefault_deadline_s = 1.0\n'
        '[[mesh.endpoints]]\nname = "e"\ntiers = ["big", "mini"]\nmodels = { big = "llm-70b" }\n'
        f'address = "{triton.address}"\n'
    )
    return path
