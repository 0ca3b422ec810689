"""Frames between a worker and its parent, on the event loop that services run on."""

from __future__ import annotations

import asyncio
import socket

import uvloop

from services.router_inference.workers import frames


def test_what_is_sent_to_somebody_gone_is_dropped() -> None:
    """Neither a worker nor its parent fails for having something to say to the other."""

    async def send() -> None:
        own, other = socket.socketpair()
        _, writer = await asyncio.open_unix_connection(sock=own)
        frames.send(writer, frames.frame(frames.SERVING))
        assert other.recv(5) == frames.frame(frames.SERVING)
        other.close()
        writer.close()
        await writer.wait_closed()
        frames.send(writer, frames.frame(frames.SERVING))

    uvloop.run(send())
