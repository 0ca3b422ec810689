"""The end of a service: it waits for each of its parts within a limit, and says what it left.

One that waits for ever has to be killed, and then nothing after that part is closed or written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection
from typing import Any

from services.common.log import Logger

AGAIN_S = 2.0
"""Time after which tasks that go on although they were cancelled are cancelled again, seconds."""
_MOST_TOLD = 50


async def within(work: Awaitable[None], limit_s: float, part: str, log: Logger) -> None:
    """Waits for a part of the stop; after its limit it is told, cancelled and left behind.

    Args:
        work: What it does; its error is raised.
        limit_s: Longest time for it, seconds.
        part: Its name in the log.
        log: Where it is told, with the places where tasks wait.
    """
    doing = asyncio.ensure_future(work)
    try:
        await asyncio.wait([doing], timeout=limit_s)
        if doing.done():
            doing.result()
        else:
            log.error("stop_goes_on", without=part, after_s=limit_s, waiting=_places())
    finally:
        doing.cancel()


async def end(tasks: Collection[asyncio.Task[Any]], log: Logger) -> None:
    """Cancels tasks and waits until all of them have ended.

    A cancellation can be lost: what it interrupts may handle it, or end in the same turn of the
    loop. What goes on is told, and then everything is cancelled, since one task may wait for
    another.
    """
    for task in tasks:
        task.cancel()
    while tasks and (left := (await asyncio.wait(tasks, timeout=AGAIN_S))[1]):
        names = sorted(task.get_name() for task in left)
        log.error("tasks_go_on", tasks=names, after_s=AGAIN_S, waiting=_places())
        for task in _others():
            task.cancel()


def _others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


def _places() -> list[str]:
    """Returns where the other tasks wait."""
    return sorted(_place(task) for task in _others())[:_MOST_TOLD]


def _place(task: asyncio.Task[Any]) -> str:
    """Returns where a task waits: its coroutines with their lines, from the outermost on."""
    steps: list[str] = []
    at: Any = task.get_coro()
    while (frame := getattr(at, "cr_frame", None)) is not None:
        steps.append(f"{at.__qualname__}:{frame.f_lineno}")
        at = at.cr_await
    return " > ".join(steps) or task.get_name()
