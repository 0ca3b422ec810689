"""Where the pieces of an answer go while they come."""

from __future__ import annotations

from typing import Protocol

from services.common.tiers.answer import TierChunk


class Sink(Protocol):
    """Where the pieces of an answer go."""

    def push(self, chunk: TierChunk) -> None:
        """Takes a piece; must not block."""

    def restart(self) -> None:
        """Forgets the pieces so far: another tier starts again from the beginning."""


class TextSink:
    """Collects an answer that is sent as one piece."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[str] = []

    def push(self, chunk: TierChunk) -> None:
        """Takes a piece."""
        self._parts.append(chunk.text)

    def restart(self) -> None:
        """Forgets the pieces so far."""
        self._parts.clear()

    def text(self) -> str:
        """Returns the answer."""
        return "".join(self._parts)
