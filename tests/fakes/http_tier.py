"""A server that answers as Triton's HTTP `generate_stream`, or breaks off where a test says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class HttpTier:
    """What a server got, and how it answers.

    Attributes:
        paths: paths of the requests.
        bodies: their bodies.
        headers: their headers, names in lower case.
        pieces: pieces of an answer.
        step_s: time before each, seconds.
        cut_after: pieces after which the connection is closed; None for never.
        status: HTTP status.
        has_body: False for answers of headers alone.
        address: where it listens.
        left: clients that went away before their answer was complete.
        begins: set while answers begin at once; cleared, they wait for it.
        may_go_on: set while pieces follow each other; cleared, all but the first wait for it.
    """

    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    pieces: int = 3
    step_s: float = 0.0
    cut_after: int | None = None
    status: int = 200
    has_body: bool = True
    address: str = ""
    left: int = 0
    begins: asyncio.Event = field(default_factory=asyncio.Event)
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Lets everything go on."""
        self.begins.set()
        self.may_go_on.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection."""
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)
        }
        self.paths.append(first.split(" ")[1])
        self.headers.append(headers)
        self.bodies.append(await _body(reader, headers))
        await self.begins.wait()
        reason = b"OK" if self.status == 200 else b"No"
        writer.write(b"HTTP/1.1 %d %s\r\n" % (self.status, reason))
        if not self.has_body:
            writer.write(b"content-length: 0\r\n\r\n")
            await writer.drain()
            return True
        writer.write(b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(self.pieces):
            if self.step_s:  # without a step all is sent at once, and a cut comes with it
                await asyncio.sleep(self.step_s)
            if number:
                await self.may_go_on.wait()
            if number == self.cut_after:
                return False
            piece = b"data: %s\n\n" % json.dumps({"text_output": f"{number} "}).encode()
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            try:
                await writer.drain()
            except ConnectionError:
                self.left += 1
                raise
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


@asynccontextmanager
async def http_tier(**options: object) -> AsyncIterator[HttpTier]:
    """Runs one on a free port."""
    tier = HttpTier(**options)  # type: ignore[arg-type]
    server = await asyncio.start_server(tier.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    tier.address = f"{host}:{port}"
    try:
        yield tier
    finally:
        server.close()
