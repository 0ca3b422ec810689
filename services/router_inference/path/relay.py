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
        self._ready = asyncio.Event()

    def push(self, chunk: TierChunk) -> None:
        """Takes a piece."""
        self._parts.append(chunk.text)
        self._token_count += chunk.token_count
        self._has_last = chunk.is_final
        self._ready.set()

    def restart(self) -> None:
        """Forgets what was not handed over; nothing was, or the answer could not start again."""
        self._parts.clear()
        self._token_count = 0
        self._has_last = False
        self._ready.clear()

    def _take(self) -> tuple[str, int]:
        portion = "".join(self._parts), self._token_count
        self.restart()
        return portion

    async def answer(
        self, dispatcher: Dispatcher, job: Job
    ) -> AsyncGenerator[tuple[str, int], None]:
        """Runs the job and yields its portions; once the job is complete, the one that is last.

        Raises:
            DomainError: as `Dispatcher.answer`; pieces may have gone out before.
        """
        loop = asyncio.get_running_loop()
        task = loop.create_task(dispatcher.answer(job, self))
        task.add_done_callback(lambda _: self._ready.set())
        try:
            while not task.done():
                await self._ready.wait()
                self._ready.clear()
                if not self._parts:
                    continue
                if self._has_last:
                    # The end is at hand; known together, both fit into one message.
                    await asyncio.wait((task,))
                    break
                yield self._take()
                if not task.done() and self._coalesce_s > 0.0:
                    # The end of the answer ends the pause; more pieces do not.
                    await asyncio.wait((task,), timeout=self._coalesce_s)
            if self._parts:
                yield self._take()
            task.result()
        finally:
            task.cancel()  # where the reader left before the end
            await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()  # which ended the request already; nobody else asks for it
