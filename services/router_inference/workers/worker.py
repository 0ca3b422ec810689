"""A router as one of several workers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import generate_latest

from services.common.lifecycle import Running
from services.common.server import ServerSettings
from services.common.supervision import BackgroundTask
from services.router_inference.workers import frames
from services.router_inference.workers.exchange import Exchange

if TYPE_CHECKING:
    from services.router_inference.app import RouterInference


class WorkerApplication:
    """Tells its parent how it is, and ends when the parent says so or is gone."""

    def __init__(self, app: RouterInference, exchange: Exchange, parent: socket.socket) -> None:
        """Takes the router, which knows its place, its exchange, and the way to the parent."""
        self.stop = asyncio.Event()
        self._exchange = exchange
        self._app = app
        self._parent = parent
        self._is_leaving = False

    @property
    def name(self) -> str:
        """Name of the service."""
        return self._app.name

    @property
    def server_settings(self) -> ServerSettings:
        """Drain times; one that leaves the others behind need not wait for balancers."""
        settings = self._app.server_settings
        if self._is_leaving:
            return settings.model_copy(update={"lame_duck_s": 0.0})
        return settings

    async def start(self, stack: AsyncExitStack) -> Running:
        """Builds the router; it listens once it is ready, since until then the others do."""
        reader, writer = await asyncio.open_unix_connection(sock=self._parent)
        stack.callback(writer.close)
        self._exchange.connect(partial(frames.send, writer))
        running = await self._app.start(stack)

        async def flush() -> None:
            await running.flush()
            # The last word: what was counted since the parent asked must not be lost.
            page = generate_latest(self._app.registry)
            frames.send(writer, frames.frame(frames.METRICS, page))
            with contextlib.suppress(ConnectionError):
                await writer.drain()

        tasks: Mapping[str, BackgroundTask] = {
            **running.tasks,
            "parent": lambda: self._listen(reader, writer),
        }
        return dataclasses.replace(
            running,
            tasks=tasks,
            listens_when_ready=True,
            on_serving=lambda: frames.send(writer, frames.frame(frames.SERVING)),
            flush=flush,
        )

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (told := await frames.read_frame(reader)) is not None:
            if told[0] == frames.METRICS:
                page = await asyncio.to_thread(generate_latest, self._app.registry)
                frames.send(writer, frames.frame(frames.METRICS, page))
            elif told[0] == frames.ASK:
                self._exchange.on_ask(told[1])
            elif told[0] == frames.ANSWER:
                self._exchange.on_answer(told[1])
            else:
                self._is_leaving = told[0] == frames.LEAVE
                self.stop.set()
        # Nobody would start a successor, zero what is shared, or serve the metrics.
        self.stop.set()
