"""What a worker and its parent tell each other: short frames over a pair of sockets.

A frame is one byte that says what it is, four bytes of length, and that many bytes. The end of the
connection says that the other process is gone.
"""

from __future__ import annotations

import asyncio
import struct

DRAIN = b"D"
"""To a worker: end as a service does at a stop, with its lame-duck time."""
LEAVE = b"L"
"""To a worker: end at once, without refusing anything first; the other workers go on."""
METRICS = b"M"
"""To a worker: tell your metrics. From it: here they are, as Prometheus' text."""
ASK, ANSWER = b"Q", b"A"
"""Questions to the other workers and their answers, by way of the parent; see `exchange`."""
SERVING = b"S"
"""From a worker: it listens and takes calls."""

_HEADER = struct.Struct("<cI")


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """Returns a frame's bytes."""
    return _HEADER.pack(kind, len(payload)) + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
    """Returns the next frame's kind and payload; None once the other process is gone."""
    try:
        kind, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        return kind, await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Writes frames, unless the connection is closed: uvloop raises where asyncio drops them."""
    if not writer.is_closing():
        writer.write(data)
