"""Streamed answers: pieces come from a task of their own, and go out coalesced under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from services.common.tiers.answer import TierChunk
from services.router_inference.job import Job
from services.router_inference.path.dispatch import Dispatcher


class StreamRelay:
    """Takes pieces without blocking and hands them over in (text, token count) portions.

    The first portion goes at once. After that a portion goes at most every `coalesce_s` seconds, so
    that a fast tier costs one message per interval instead of one per token; a slow one is not
    delayed at all. What waits is bounded by the request's own limit of output tokens.
    """

    def __init__(self, coalesce_s: float) -> None:
        self._coalesce_s = coalesce_s
        self._loop = asyncio.get_running_loop()
        self._parts: list[str] = []
        self._token_count = 0
        self._has_last = False
        # What the one that hands portions over waits with, and whether pieces leave it alone.
        self._waiter: asyncio.Future[None] | None = None
        self._is_deaf = False
        # Until when the next portion waits, in the loop's time; the timer is set for pieces that
        # come before then, so that a slow tier, of which none does, sets none.
        self._pause_end_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def push(self, chunk: TierChunk) -> None:
        """Takes a piece."""
        self._parts.append(chunk.text)
        self._token_count += chunk.token_count
        self._has_last = chunk.is_final
        waiter = self._waiter
        if self._is_deaf or waiter is None or waiter.done():
            return
        left_s = self._pause_end_s - self._loop.time()
        if left_s > 0.0:
            self._is_deaf = True
            self._timer = self._loop.call_later(left_s, self._end_pause)
        else:
            waiter.set_result(None)

    def restart(self) -> None:
        """Forgets what was not handed over; nothing was, or the answer could not start again."""
        self._parts.clear()
        self._token_count = 0
        self._has_last = False

    def _take(self) -> tuple[str, int]:
        portion = "".join(self._parts), self._token_count
        self.restart()
        return portion

    def _wake(self, _: object = None) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _end_pause(self) -> None:
        # Said, not left to the clock: a timer may be early by less than the clock can tell.
        self._pause_end_s = 0.0
        self._wake()

    async def _wait(self, *, for_end: bool = False, most_s: float | None = None) -> None:
        """Returns after a piece or the end of the job; it may return for nothing.

        A future and a timer of its own: `asyncio.wait` takes several times as long, and every
        portion waits.

        Args:
            for_end: True lets pieces wait for the end.
            most_s: how long to wait at most, seconds; None for as long as it takes.
        """
        waiter = self._waiter = self._loop.create_future()
        self._is_deaf = for_end
        if most_s is not None:
            self._timer = self._loop.call_later(most_s, self._end_pause)
        try:
            await waiter
        finally:
            self._is_deaf = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    async def answer(
        self, dispatcher: Dispatcher, job: Job
    ) -> AsyncGenerator[tuple[str, int], None]:
        """Runs the job and yields its portions; once the job is complete, the one that is last.

        Raises:
            DomainError: as `Dispatcher.answer`; pieces may have gone out before.
        """
        task = self._loop.create_task(dispatcher.answer(job, self))
        task.add_done_callback(self._wake)
        try:
            while not task.done():
                if not self._parts:
                    await self._wait()
                elif self._has_last:
                    # The end is at hand; known together, both fit into one message.
                    await self._wait(for_end=True)
                elif (left_s := self._pause_end_s - self._loop.time()) > 0.0:
                    # The end of the answer ends the pause; more pieces do not.
                    await self._wait(for_end=True, most_s=left_s)
                else:
                    yield self._take()
                    self._pause_end_s = self._loop.time() + self._coalesce_s
            if self._parts:
                yield self._take()
            task.result()
        finally:
            if not task.done():  # the reader left before the end
                task.cancel()
                await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()  # which ended the request already; nobody else asks for it
