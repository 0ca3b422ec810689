"""The one polling loop of the suite: waits for what another process, thread or server does.

A wait ends as soon as its condition holds. Its limit only turns a hang into a failure, so it is
generous: a busy machine is no reason to fail.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 30.0
_STEP_S = 0.01


async def until(check: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Returns what a check (a function or a coroutine function) returns once it holds.

    Raises:
        AssertionError: It did not hold within the limit; the text is `what`.
    """
    give_up_s = time.monotonic() + limit_s
    while True:
        found = check()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < give_up_s, f"not within {limit_s:g} s: {what}"
        await asyncio.sleep(_STEP_S)


def until_sync(check: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Does the same for a test without an event loop."""
    give_up_s = time.monotonic() + limit_s
    while not (found := check()):
        assert time.monotonic() < give_up_s, f"not within {limit_s:g} s: {what}"
        time.sleep(_STEP_S)
    return found
