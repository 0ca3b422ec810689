"""Takes a request's body in: bounded in bytes and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from services.openai_door.errors import HttpError
from services.openai_door.head import Head, body_too_large

Receive = Callable[[], Awaitable[dict[str, Any]]]

_MOST_DISCARDED_BYTES = 8 * 1024 * 1024
_DISCARD_S = 1.0


class GoneError(Exception):
    """The client left before its answer was complete."""


async def read_body(
    receive: Receive, head: Head, most_bytes: int, timeout_s: float | None
) -> bytes:
    """Returns a request's body.

    Args:
        receive: ASGI's.
        head: The request's headers.
        most_bytes: Largest body taken.
        timeout_s: Longest time it may take to arrive, seconds; None where it is here already.

    Raises:
        HttpError: It is no JSON by its type, too large, or too slow.
        GoneError: The client left.
    """
    try:
        head.check_body(most_bytes)
        if timeout_s is None:
            return await _read(receive, most_bytes)
        async with asyncio.timeout(timeout_s):
            return await _read(receive, most_bytes)
    except TimeoutError:
        text = f"the body took longer than {timeout_s:g} s"
        raise HttpError(408, "BODY_TOO_SLOW", text, ((b"connection", b"close"),)) from None
    except HttpError:
        if not head.expects_continue:
            await _discard(receive)
        raise


async def _read(receive: Receive, most_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        part = message.get("body", b"")
        size += len(part)
        if size > most_bytes:
            raise body_too_large(most_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _discard(receive: Receive) -> None:
    """Reads on for a while: a connection that is closed on unread bytes loses its answer too."""
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while size < _MOST_DISCARDED_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                size += len(message.get("body", b""))
