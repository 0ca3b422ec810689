"""Bare HTTP/2 clients, as few bytes as a gRPC server needs: what no gRPC library would do."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING = 0, 1, 4, 6
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_HEAD_BYTES = 9
_STREAM = 1


class Reader:
    """A connection that answers pings, and takes not one byte of any answer."""

    def __init__(self) -> None:
        """Opens nothing yet."""
        self.is_closed_by_server = False
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._task: asyncio.Task[None] | None = None

    async def connect(self, address: str) -> None:
        """Connects, and grants no window to any answer."""
        host, _, port = address.rpartition(":")
        await asyncio.get_running_loop().sock_connect(self._socket, (host, int(port)))
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0)
        await self._send(_PREFACE + _frame(_SETTINGS, 0, 0, settings))
        self._task = asyncio.create_task(self._answer_pings())

    async def begin(self, method: str) -> None:
        """Calls a method, and sends no message."""
        await self._send(_head(method))

    async def ask(self, method: str, message: bytes) -> None:
        """Calls a method; nothing of its answer is ever read."""
        body = b"\x00" + struct.pack(">I", len(message)) + message
        await self._send(_head(method) + _frame(_DATA, _END_STREAM, _STREAM, body))

    async def close(self) -> None:
        """Goes away."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        self._socket.close()

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def _answer_pings(self) -> None:
        loop, waiting = asyncio.get_running_loop(), b""
        with suppress(OSError):
            while data := await loop.sock_recv(self._socket, 65_536):
                waiting += data
                while len(waiting) >= (whole := _HEAD_BYTES + int.from_bytes(waiting[:3], "big")):
                    kind, flags, payload = waiting[3], waiting[4], waiting[_HEAD_BYTES:whole]
                    waiting = waiting[whole:]
                    if kind in (_PING, _SETTINGS) and not flags & _ACK:
                        body = payload if kind == _PING else b""
                        await self._send(_frame(kind, _ACK, 0, body))
        self.is_closed_by_server = True


def _head(method: str) -> bytes:
    """Returns the headers with which a call begins."""
    names = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "soak"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    headers = b"".join(b"\x00" + _text(name) + _text(value) for name, value in names)
    return _frame(_HEADERS, _END_HEADERS, _STREAM, headers)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    length = struct.pack(">I", len(payload))[1:]
    return length + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _text(text: str) -> bytes:
    """Encodes a header's text without compression (RFC 7541, section 5.2)."""
    assert len(text) < 127
    return bytes((len(text),)) + text.encode()
