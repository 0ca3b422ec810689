"""A wire between two parties of the mesh that can be cut, slowed and moved while it is in use."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field

_CHUNK_BYTES = 65_536
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends a reset instead of an orderly end."""


@dataclass
class Direction:
    """One way along a relay.

    Attributes:
        delay_s: Time that every byte takes beside the network's own, seconds.
        rate_bytes_s: Most bytes in a second; 0: as many as come.
        flows: Cleared, bytes are taken in by nobody: the sender's window fills, and no end is seen.
    """

    delay_s: float = 0.0
    rate_bytes_s: float = 0.0
    flows: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Lets everything pass."""
        self.flows.set()


class Relay:
    """Passes TCP connections on to a target on this machine.

    Attributes:
        there: The way from whoever connects to the target.
        back: The way from the target.
    """

    def __init__(self, target: str) -> None:
        """Listens to nothing yet; `target` is `host:port`."""
        self.target = target
        self.there, self.back = Direction(), Direction()
        self._refuses = False
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Port it listens on."""
        assert self._server is not None, "start() comes first"
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def address(self) -> str:
        """Address to give to whoever shall go through it."""
        return f"127.0.0.1:{self.port}"

    def __len__(self) -> int:
        """Number of connections that stand."""
        return len(self._pairs)

    async def start(self) -> Relay:
        """Listens on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def close(self) -> None:
        """Ends every connection and stops listening."""
        assert self._server is not None, "start() comes first"
        self._server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self) -> None:
        """Ends every present connection with a reset, seen by both sides."""
        for pair in list(self._pairs):
            for writer in pair:
                _reset(writer)

    def refuse(self, refuses: bool) -> None:
        """Ends new connections at once with a reset, or stops doing so."""
        self._refuses = refuses

    def mend(self) -> None:
        """Lets everything pass again as at the start; connections that stand go on."""
        self._refuses = False
        for way in (self.there, self.back):
            way.delay_s = way.rate_bytes_s = 0.0
            way.flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            _reset(writer)
            return
        host, _, port = self.target.rpartition(":")
        try:
            behind, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            _reset(writer)
            return
        pair = (writer, far_writer)
        self._pairs.add(pair)
        ways = [
            asyncio.create_task(_carry(reader, far_writer, self.there)),
            asyncio.create_task(_carry(behind, writer, self.back)),
        ]
        self._tasks |= set(ways)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # by `close`
                await asyncio.gather(*ways)
        finally:
            self._tasks -= set(ways)
            self._pairs.discard(pair)
            for each in pair:
                each.close()


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Direction
) -> None:
    """Passes one way of one connection on, in order, each piece when it is due."""
    loop = asyncio.get_running_loop()
    due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)

    async def deliver() -> None:
        while True:
            at_s, data = await due.get()
            await asyncio.sleep(at_s - loop.time())
            await way.flows.wait()
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
            if way.rate_bytes_s:
                await asyncio.sleep(len(data) / way.rate_bytes_s)

    async def take() -> None:
        while True:
            await way.flows.wait()
            data = await reader.read(_CHUNK_BYTES)
            await due.put((loop.time() + way.delay_s, data))
            if not data:
                return

    with contextlib.suppress(OSError, ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(take())
            group.create_task(deliver())


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
