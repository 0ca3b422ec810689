"""Runs a command that owns child processes: signals end it in order, a second one at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from services.local.supervisor import heard_or_not, kill_descendants

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNAL_EXIT_BASE = 128


def run_owning_children(work: Coroutine[Any, Any, int], say: Callable[[str], None]) -> int:
    """Runs ``work``; the first signal cancels it, a second one kills every child and exits.

    Args:
        work: What the command does; returns its exit code.
        say: Tells the user that the command is being stopped, which it is also where nobody reads.

    Returns:
        What ``work`` returns, or 128 + the signal's number if it was cut off.
    """
    return asyncio.run(_guard(work, say))


async def _guard(work: Coroutine[Any, Any, int], say: Callable[[str], None]) -> int:
    task = asyncio.ensure_future(work)
    received: list[int] = []
    say = heard_or_not(say)

    def on_signal(number: int) -> None:
        received.append(number)
        if len(received) == 1:
            say("stopping (once more to kill)")
            task.cancel()
        else:
            kill_descendants()
            os._exit(SIGNAL_EXIT_BASE + number)

    loop = asyncio.get_running_loop()
    # Who starts a command by nohup wants it to outlive the terminal.
    hang_up_is_nothing = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heeded = [each for each in SIGNALS if each != signal.SIGHUP or not hang_up_is_nothing]
    for number in heeded:
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        return SIGNAL_EXIT_BASE + received[0]
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)
