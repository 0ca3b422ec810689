"""The OpenAI-shaped door inside a test: real HTTP server, real gRPC calls, port 0."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.common.clock import SystemClock
from services.common.log import get_logger
from services.common.settings import load_settings
from services.common.telemetry import Telemetry
from services.openai_door.app import OpenAiDoor
from services.openai_door.http_server import HttpServer
from services.openai_door.settings import Settings
from tests.fakes.router_process import mesh_toml
from tests.waiting import LIMIT_S


@dataclass
class RunningDoor:
    """A door inside the test's own loop.

    Attributes:
        url: Where it serves.
        client: Calls it.
        server: Its server.
    """

    url: str
    client: httpx.AsyncClient
    server: HttpServer


def door_toml(
    routers: Sequence[str], *lines: str, mesh: str = "", listen: str = "127.0.0.1:0"
) -> str:
    """Returns settings of a door before some routers.

    Args:
        routers: Their addresses.
        lines: More lines of [openai_door].
        mesh: The rest of the file; by default three tiers and the tasks of the paper.
        listen: Where it listens.
    """
    listed = ", ".join(f'"{address}"' for address in routers)
    own = [
        "[openai_door]",
        f'listen = "{listen}"',
        'metrics_listen = ""',
        f"routers = [{listed}]",
        "lame_duck_s = 0.0",
        "grace_s = 2.0",
        "router_check_interval_s = 0.1",
        *lines,
    ]
    return (mesh or mesh_toml([("e0", "127.0.0.1:1")])) + "\n".join(own) + "\n"


@asynccontextmanager
async def running_door(
    folder: Path, toml: str, *, telemetry: Telemetry | None = None, is_ready: bool = True
) -> AsyncIterator[RunningDoor]:
    """Runs a door with a settings file until the block ends.

    Args:
        folder: Where the file is written.
        toml: The settings.
        telemetry: Where spans go.
        is_ready: False does not wait for a router.
    """
    path = folder / "door.toml"
    path.write_text(toml, encoding="utf-8")
    settings = load_settings(Settings, path=path, environ={})
    door = OpenAiDoor(
        settings=settings,
        clock=SystemClock(),
        log=get_logger("door-under-test"),
        telemetry=telemetry or Telemetry(None, random.Random(1)),
    )
    async with AsyncExitStack() as stack:
        running = await door.start(stack)
        server = running.server
        assert isinstance(server, HttpServer)
        await server.start()
        tasks = [asyncio.ensure_future(task()) for task in running.tasks.values()]
        try:
            if is_ready:
                await asyncio.wait_for(running.ready(), LIMIT_S)
            await server.set_serving(True)
            url = f"{server.scheme}://{server.address}"
            async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S, verify=False) as client:
                yield RunningDoor(url, client, server)
        finally:
            await server.stop(0.5)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
