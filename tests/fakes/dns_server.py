"""A DNS server on loopback that knows one name; tests change its addresses while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import cast

_HEADER_BYTES = 12
_TYPE_A = 1
_POINTER_TO_QUESTION = b"\xc0\x0c"


class DnsServer(asyncio.DatagramProtocol):
    """Answers every question for IPv4 addresses with `addresses`."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.question_count = 0
        self._transport: asyncio.DatagramTransport | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._transport is not None
        return int(self._transport.get_extra_info("sockname")[1])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the socket."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answers."""
        assert self._transport is not None
        self.question_count += 1
        end = data.index(b"\0", _HEADER_BYTES) + 1 + 4
        (kind,) = struct.unpack("!H", data[end - 4 : end - 2])
        found = self.addresses if kind == _TYPE_A else []
        header = data[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
        record = _POINTER_TO_QUESTION + struct.pack("!HHIH", _TYPE_A, 1, 0, 4)
        answers = b"".join(record + socket.inet_aton(address) for address in found)
        self._transport.sendto(header + data[_HEADER_BYTES:end] + answers, addr)


@contextlib.asynccontextmanager
async def dns_server() -> AsyncIterator[DnsServer]:
    """Runs one on a free port."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(DnsServer, local_addr=("127.0.0.1", 0))
    try:
        yield server
    finally:
        transport.close()
