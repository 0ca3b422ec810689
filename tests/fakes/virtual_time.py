"""An event loop whose time jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")
_START_S = 1000.0


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs timers at once and in order; nothing in it may wait for a socket."""

    def __init__(self, start_s: float = _START_S) -> None:
        super().__init__(_JumpingSelector(self))
        self.now_s = start_s

    def time(self) -> float:
        """Returns the virtual time, seconds."""
        return self.now_s


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("every task waits for something that will never happen")
        if timeout > 0.0:
            # The timer's own time: adding what is left until then would round.
            timers: list[asyncio.TimerHandle] = self._loop._scheduled  # type: ignore[attr-defined]
            self._loop.now_s = timers[0].when()
        return super().select(0.0)


class LoopClock:
    """A `Clock` that follows the running virtual loop."""

    def monotonic_s(self) -> float:
        """Returns the loop's time."""
        return asyncio.get_running_loop().time()

    def wall_ns(self) -> int:
        """Returns a wall time that moves with the loop's."""
        return 1_700_000_000_000_000_000 + int(self.monotonic_s() * 1e9)

    async def sleep(self, duration_s: float) -> None:
        """Waits in virtual time."""
        await asyncio.sleep(max(duration_s, 0.0))


def run_virtual(main: Coroutine[Any, Any, Result], start_s: float = _START_S) -> Result:
    """Runs a coroutine on a loop of its own, in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(start_s)) as runner:
        return runner.run(main)
