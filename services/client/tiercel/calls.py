"""Calls of one answer that leave nothing behind when they are given up.

A call's own `cancel` also cancels the task inside that waits for gRPC's core, and so does whoever
cancels a task that awaits the call. Then grpcio never frees what it had handed to the core for the
call, some 1.1 kB (1.85.1; https://github.com/grpc/grpc/issues/43360). Where only the core is told,
the task ends a moment later, and frees it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from grpc.aio import _call


async def answer_of(call: Any) -> Any:
    """Returns a call's answer; a call whose caller is cancelled is given up."""
    waiting = getattr(call, "_call_response", None)
    if waiting is None:  # a call with interceptors, which has the call itself out of sight
        return await call
    try:
        await asyncio.shield(waiting)
    except asyncio.CancelledError:
        give_up(call)
        raise
    return await call


def give_up(call: Any) -> None:
    """Cancels a call that `answer_of` waits for, or a stream."""
    if isinstance(call, _call.UnaryUnaryCall):
        _call.Call.cancel(call)
    else:
        call.cancel()
