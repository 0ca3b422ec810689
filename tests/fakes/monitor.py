"""A real load monitor inside a test's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from services.common.clock import SystemClock
from services.common.settings import load_settings
from services.load_monitor.app import LoadMonitorApp
from services.load_monitor.settings import Settings
from tests.waiting import LIMIT_S


@asynccontextmanager
async def running_monitor(folder: Path, toml: str, address: str) -> AsyncIterator[LoadMonitorApp]:
    """Runs a load monitor with a mesh's settings until the block ends."""
    path = folder / "monitor.toml"
    path.write_text(toml, encoding="utf-8")
    settings = load_settings(
        Settings,
        path=path,
        environ={},
        overrides={"load_monitor.listen": address, "load_monitor.metrics_listen": ""},
    )
    app = LoadMonitorApp(settings=settings, profile_names={}, clock=SystemClock())
    async with AsyncExitStack() as stack:
        running = await app.start(stack)
        await running.server.start()
        tasks = [asyncio.ensure_future(task()) for task in running.tasks.values()]
        try:
            await asyncio.wait_for(running.ready(), LIMIT_S)
            yield app
        finally:
            running.server.end_watches()
            await running.server.stop(0.2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
