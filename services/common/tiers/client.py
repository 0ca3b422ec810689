"""What a client of an endpoint does for a request, whatever the endpoint's server speaks."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from services.common.tiers.answer import TierChunk
from services.common.tiers.errors import TierUnavailableError


class Asking(Protocol):
    """One request under way."""

    def leave(self) -> None:
        """Stops listening at the deadline; the request ends as its server ends late ones."""
        ...

    def cancel(self) -> None:
        """Stops listening and has the server stop the request at once."""
        ...


class TierClient(ABC):
    """Calls one endpoint. Make it once per endpoint inside a running event loop."""

    address: str
    """`host:port` of the endpoint."""

    async def __aenter__(self) -> Self:
        """Returns itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes it."""
        await self.close()

    @abstractmethod
    async def close(self) -> None:
        """Closes its connections; requests under way are cancelled."""

    @property
    @abstractmethod
    def busy_count(self) -> int:
        """How many requests are under way."""

    @abstractmethod
    def ask(
        self,
        model: str,
        prompt: str,
        max_output_tokens: int,
        *,
        timeout_s: float,
        on_chunk: Callable[[TierChunk], None],
        on_end: Callable[[Exception | None], None],
        temperature: float = 0.0,
        seed: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
        stream: bool = True,
    ) -> Asking:
        """Asks a tier for an answer, which comes by callbacks.

        Args:
            model: The endpoint's own name for the tier's model.
            prompt: The prompt.
            max_output_tokens: Longest answer in tokens.
            timeout_s: Time left, seconds.
            on_chunk: Gets every piece.
            on_end: Called once after the last piece with None, or with what the request failed
                with, most often a TierError. An answer longer than was asked for, or not of the
                form asked for, is a TierUnavailableError with the reason BAD_ANSWER.
            temperature: Sampling temperature; 0: greedy.
            seed: Sampling seed.
            metadata: To send along, for example `traceparent` of a sampled request.
            stream: Whether the tier sends tokens as they come, else one piece.

        Raises:
            TierDeadlineError: No time is left; nothing was sent.
            TierInvalidError: The prompt is too long; nothing was sent.
        """

    async def generate(
        self, model: str, prompt: str, max_output_tokens: int, **options: Any
    ) -> AsyncGenerator[TierChunk, None]:
        """Asks a tier for an answer and yields it piece by piece; options as those of `ask`.

        Closing the generator, or cancelling the task that runs it, cancels the request, and the
        server stops working on it. Use `contextlib.aclosing` where the loop may end early.

        Raises:
            TierError: One of its subclasses; see `ask`.
        """
        pieces: asyncio.Queue[TierChunk | Exception | None] = asyncio.Queue()
        put = pieces.put_nowait
        asking = self.ask(model, prompt, max_output_tokens, on_chunk=put, on_end=put, **options)
        try:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            asking.cancel()


class ForbiddenClient(TierClient):
    """Stands for an endpoint at an address that the settings do not allow: nothing is sent there.

    Either they do not list it, or it is another machine's that would be called in plain text.

    Whoever tells of such an endpoint cannot have prompts sent elsewhere; it counts as one that is
    not there.
    """

    def __init__(self, address: str) -> None:
        """Takes the address."""
        self.address = address

    async def close(self) -> None:
        """Has nothing to close."""

    @property
    def busy_count(self) -> int:
        """Is 0."""
        return 0

    def ask(self, *_: Any, **__: Any) -> Asking:
        """Raises TierUnavailableError."""
        raise TierUnavailableError(
            "ADDRESS_NOT_ALLOWED",
            f"{self.address} is not in mesh.endpoint_addresses, or would be called in plain text",
        )
