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
        self._parts: list[str] = []
        self._token_count = 0
        self._has_last = False
        # What the one that hands portions over waits with, and whether for the end alone.
        self._waiter: asyncio.Future[None] | None = None
        self._awaits_end = False

    def push(self, chunk: TierChunk) -> None:
        """Takes a piece."""
        self._parts.append(chunk.text)
        self._token_count += chunk.token_count
        self._has_last = chunk.is_final
        if not self._awaits_end:
            self._wake()

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

    async def _wait(self, *, for_end: bool = False, most_s: float | None = None) -> None:
        """Returns after a piece or the end of the job; it may return for nothing.

        A future and a timer of its own: `asyncio.wait` takes several times as long, and every
        portion waits.

        Args:
            for_end: True lets pieces wait for the end.
            most_s: how long to wait at most, seconds; None for as long as it takes.
        """
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = None if most_s is None else loop.call_later(most_s, self._wake)
        self._awaits_end = for_end
        try:
            await waiter
        finally:
            self._awaits_end = False
            if timer is not None:
                timer.cancel()

    async def answer(
        self, dispatcher: Dispatcher, job: Job
    ) -> AsyncGenerator[tuple[str, int], None]:
        """Runs the job and yields its portions; once the job is complete, the one that is last.

        Raises:
            DomainError: as `Dispatcher.answer`; pieces may have gone out before.
        """
        task = asyncio.get_running_loop().create_task(dispatcher.answer(job, self))
        task.add_done_callback(self._wake)
        try:
            while not task.done():
                if not self._parts:
                    await self._wait()
                    continue
                if self._has_last:
                    # The end is at hand; known together, both fit into one message.
                    while not task.done():
                        await self._wait(for_end=True)
                    break
                yield self._take()
                if not task.done() and self._coalesce_s > 0.0:
                    # The end of the answer ends the pause; more pieces do not.
                    await self._wait(for_end=True, most_s=self._coalesce_s)
            if self._parts:
                yield self._take()
            task.result()
        finally:
            if not task.done():  # the reader left before the end
                task.cancel()
                await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()  # which ended the request already; nobody else asks for it
