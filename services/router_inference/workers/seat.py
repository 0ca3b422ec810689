"""What a worker process has from its parent, and the life it leads there."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from prometheus_client import generate_latest

from services.common.lifecycle import Running
from services.common.server import ServerSettings
from services.common.supervision import BackgroundTask
from services.router_inference.workers import frames

if TYPE_CHECKING:
    from services.router_inference.app import RouterInference


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A worker's place among those of its router.

    Attributes:
        number: from 1, unique among the workers that live; a worker's successor has it again.
        router_id: name of the router, the same for all its workers.
        epoch: start stamp of the router, likewise.
        listen: the address all of them listen on.
    """

    number: int
    router_id: str
    epoch: int
    listen: str

    @property
    def worker_id(self) -> str:
        """Name of this worker's own records; no router's name has a slash."""
        return f"{self.router_id}/{self.number}"


class WorkerApplication:
    """A router as one of several workers: tells its parent how it is, and ends with it."""

    def __init__(self, app: RouterInference, parent: socket.socket) -> None:
        """Takes the router, which knows its seat, and the connection to the parent."""
        self.stop = asyncio.Event()
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
        running = await self._app.start(stack)

        async def flush() -> None:
            await running.flush()
            # The last word: what was counted since the parent asked must not be lost.
            writer.write(frames.frame(frames.METRICS, generate_latest(self._app.registry)))
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
            on_serving=lambda: writer.write(frames.frame(frames.SERVING)),
            flush=flush,
        )

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (told := await frames.read_frame(reader)) is not None:
            if told[0] == frames.METRICS:
                page = await asyncio.to_thread(generate_latest, self._app.registry)
                writer.write(frames.frame(frames.METRICS, page))
            else:
                self._is_leaving = told[0] == frames.LEAVE
                self.stop.set()
        # Nobody would start a successor, zero what is shared, or serve the metrics.
        self.stop.set()
