"""A clock that moves by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class FakeClock:
    """A clock whose time only passes in `advance`; sleepers wake in order of their due times."""

    def __init__(self, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_s = 1000.0
        self._wall_ns = wall_ns
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def monotonic_s(self) -> float:
        """Returns the fake monotonic time."""
        return self._now_s

    def wall_ns(self) -> int:
        """Returns the fake wall time."""
        return self._wall_ns

    async def sleep(self, duration_s: float) -> None:
        """Waits until the clock was advanced far enough."""
        if duration_s <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + duration_s, next(self._order), future))
        await future

    def move(self, duration_s: float) -> None:
        """Moves the time without waking anybody (code without sleepers)."""
        self._now_s += duration_s
        self._wall_ns += round(duration_s * 1e9)

    def set_by(self, shift_s: float) -> None:
        """Sets the wall clock ahead, or back by a negative time; no time passes."""
        self._wall_ns += round(shift_s * 1e9)

    async def advance(self, duration_s: float) -> None:
        """Moves the time, waking every sleeper on the way and letting it run."""
        end_s = self._now_s + duration_s
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end_s + 1e-9:
            due_s, _, future = heapq.heappop(self._sleepers)
            if future.done():
                continue
            self.move(max(due_s - self._now_s, 0.0))
            future.set_result(None)
            await settle()
        self.move(max(end_s - self._now_s, 0.0))


async def settle(rounds: int = 20) -> None:
    """Lets every task that can run do so."""
    for _ in range(rounds):
        await asyncio.sleep(0)
