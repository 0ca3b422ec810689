"""The blocking client, for scripts, notebooks and threaded programs."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from tiercel.aio import AsyncClient
from tiercel.options import GenerateOptions, Outcome, RouteOptions
from tiercel.results import Answer, Chunk, Ticket

ResultT = TypeVar("ResultT")


class Client:
    """Same calls as AsyncClient, blocking; use it as a context manager.

    One background thread runs an event loop; calls may come from any thread.
    """

    def __init__(self, addresses: Sequence[str] | str = "127.0.0.1:7410", **options: Any) -> None:
        """Takes what AsyncClient takes."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="tiercel-client", daemon=True
        )
        self._thread.start()
        try:
            self._client = self._wait(_make(addresses, options))
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        """Returns the client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the client."""
        self.close()

    def close(self) -> None:
        """Closes the channels and ends the background thread; a second call does nothing."""
        if self._loop.is_closed():
            return
        self._wait(self._client.close())
        self._stop()

    def generate(self, prompt: str, *, task: str, **options: Unpack[GenerateOptions]) -> Answer:
        """Answers a prompt; see AsyncClient.generate."""
        return self._wait(self._client.generate(prompt, task=task, **options))

    def generate_stream(
        self, prompt: str, *, task: str, **options: Unpack[GenerateOptions]
    ) -> Iterator[Chunk | Answer]:
        """Streams an answer; see AsyncClient.generate_stream."""
        events: queue.SimpleQueue[Chunk | Answer | BaseException | None] = queue.SimpleQueue()
        stream = self._client.generate_stream(prompt, task=task, **options)
        pump = asyncio.run_coroutine_threadsafe(_pump(stream, events), self._loop)
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            pump.cancel()

    def route(
        self, *, task: str, prompt_token_count: int, **options: Unpack[RouteOptions]
    ) -> Ticket:
        """Asks for a decision only; see AsyncClient.route."""
        return self._wait(
            self._client.route(task=task, prompt_token_count=prompt_token_count, **options)
        )

    def report_outcome(self, **outcome: Unpack[Outcome]) -> None:
        """Closes a ticket or gives feedback; see AsyncClient.report_outcome."""
        self._wait(self._client.report_outcome(**outcome))

    def _wait(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _make(addresses: Sequence[str] | str, options: dict[str, Any]) -> AsyncClient:
    """Channels of grpc.aio belong to the loop that runs when they are made."""
    return AsyncClient(addresses, **options)


async def _pump(
    stream: AsyncIterator[Chunk | Answer],
    events: queue.SimpleQueue[Chunk | Answer | BaseException | None],
) -> None:
    try:
        async for event in stream:
            events.put(event)
        events.put(None)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        events.put(error)
