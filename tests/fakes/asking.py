"""Fake tiers that answer by generators, asked as a `TritonClient` is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from services.common.tiers.answer import TierChunk


class FakeAsking:
    """One request under way; stands for an `Asking`."""

    def __init__(
        self,
        chunks: AsyncGenerator[TierChunk, None],
        on_chunk: Callable[[TierChunk], None],
        on_end: Callable[[Exception | None], None],
    ) -> None:
        self._on_chunk, self._on_end = on_chunk, on_end
        self._is_left = False
        self._task = asyncio.get_running_loop().create_task(self._run(chunks))

    async def _run(self, chunks: AsyncGenerator[TierChunk, None]) -> None:
        failure: Exception | None = None
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    if not self._is_left:
                        self._on_chunk(chunk)
        except Exception as error:
            failure = error
        if not self._is_left:
            self._on_end(failure)

    def leave(self) -> None:
        """Stops listening."""
        self._is_left = True

    def cancel(self) -> None:
        """Stops listening and ends the request."""
        self.leave()
        self._task.cancel()


class AsksByGenerating:
    """A tier whose `generate` is written out and whose `ask` follows from it."""

    def generate(self, *arguments: Any, **options: Any) -> AsyncGenerator[TierChunk, None]:
        """Answers."""
        raise NotImplementedError

    def ask(
        self,
        *arguments: Any,
        on_chunk: Callable[[TierChunk], None],
        on_end: Callable[[Exception | None], None],
        **options: Any,
    ) -> FakeAsking:
        """Answers by callbacks."""
        return FakeAsking(self.generate(*arguments, **options), on_chunk, on_end)
