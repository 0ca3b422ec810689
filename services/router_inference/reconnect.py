"""The loop that keeps a link to another service up.

A link is a long task that reconnects for ever. One that is down never touches the request path; it
sets a reason for which the mesh is degraded and clears it when the peer is back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from services.common.clock import Clock
from services.common.log import Logger

END_OF_STREAM: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # absent from the type stubs
_FIRST_WAIT_S = 0.05

CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 32 * 1024 * 1024),
)


async def reconnecting(
    *,
    session: Callable[[Callable[[], None]], Awaitable[None]],
    on_down: Callable[[str], None],
    clock: Clock,
    longest_wait_s: float,
    log: Logger,
    peer: str,
) -> None:
    """Runs sessions for ever, waiting a little longer after each failure in a row.

    Args:
        session: one connection; calls its argument once it works, returns or raises when it ends.
        on_down: called with the reason whenever a session ended.
        clock: waits.
        longest_wait_s: longest wait between two sessions, seconds.
        log: where bugs go.
        peer: name of the peer, for the log.
    """
    wait_s = _FIRST_WAIT_S

    def works() -> None:
        nonlocal wait_s
        wait_s = _FIRST_WAIT_S

    while True:
        reason = "the stream ended"
        try:
            await session(works)
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details() or 'no message'}"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Its channel has ended it: certificates were renewed.
            reason = "the call was cancelled"
        except Exception as error:
            # A message nobody expected must not end the router.
            log.exception("link_failed", error, peer=peer)
            reason = type(error).__name__
        on_down(reason)
        await clock.sleep(wait_s * random.uniform(0.8, 1.2))
        wait_s = min(longest_wait_s, 2.0 * wait_s)
