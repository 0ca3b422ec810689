"""The blocking client, for scripts, notebooks and threaded programs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, Unpack

from tiercel import errors
from tiercel.aio import WAIT_SLACK_S, AsyncClient
from tiercel.options import GenerateOptions, Outcome, RouteOptions
from tiercel.results import Answer, Chunk, Ticket

CLOSE_S = 5.0
"""Longest time that closing waits for calls under way to end, and for the thread."""

ResultT = TypeVar("ResultT")
Event = Chunk | Answer | BaseException | None


class Client:
    """Same calls as AsyncClient, blocking; use it as a context manager.

    One background thread runs an event loop; calls may come from any thread. Every call ends: at
    its deadline, or with a ClientUnusableError when another thread closes the client. One that is
    forgotten takes its thread and connections along; to close it is sooner.
    """

    def __init__(self, addresses: Sequence[str] | str = "127.0.0.1:7410", **options: Any) -> None:
        """Takes what AsyncClient takes."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=_run, args=(self._loop,), name="tiercel-client", daemon=True
        )
        self._thread.start()
        try:
            self._client = self._start(_make(addresses, options)).result(CLOSE_S)
        except BaseException:
            self._stop()
            raise
        # At the interpreter's end the thread goes with it.
        weakref.finalize(self, _let_go, self._client, self._loop, self._pid).atexit = False

    def __reduce__(self) -> NoReturn:
        """Refuses to be copied or pickled: connections, and their loop, have one owner."""
        raise TypeError(f"{type(self).__name__}: cannot be copied or pickled; make another one")

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
        """Closes the channels and ends the background thread; a second call does nothing.

        Calls under way in other threads end with a ClientUnusableError.
        """
        if os.getpid() != self._pid:  # the loop and its thread are the parent's
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            closing = asyncio.run_coroutine_threadsafe(_close(self._client), self._loop)
        with contextlib.suppress(concurrent.futures.TimeoutError):
            closing.result(CLOSE_S)
        self._stop()

    def generate(
        self, prompt: str, *, task: str = "", **options: Unpack[GenerateOptions]
    ) -> Answer:
        """Answers a prompt; see AsyncClient.generate."""
        return self._wait(
            self._client.generate(prompt, task=task, **options), options.get("deadline_s")
        )

    def generate_stream(
        self, prompt: str, *, task: str = "", **options: Unpack[GenerateOptions]
    ) -> Iterator[Chunk | Answer]:
        """Streams an answer; see AsyncClient.generate_stream."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        stream = self._client.generate_stream(prompt, task=task, **options)
        pump = self._start(_pump(stream, events))
        limit_s = self._client.stream_limit_s(
            options.get("deadline_s"), options.get("slo_kind", "")
        )
        end_s = time.monotonic() + limit_s + WAIT_SLACK_S
        try:
            while (event := self._next(events, end_s)) is not None:
                if isinstance(event, asyncio.CancelledError):
                    raise errors.unusable("CLIENT_CLOSED") from None
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            if os.getpid() == self._pid:
                pump.cancel()

    def route(
        self, *, task: str = "", prompt_token_count: int, **options: Unpack[RouteOptions]
    ) -> Ticket:
        """Asks for a decision only; see AsyncClient.route."""
        return self._wait(
            self._client.route(task=task, prompt_token_count=prompt_token_count, **options)
        )

    def report_outcome(self, **outcome: Unpack[Outcome]) -> None:
        """Closes a ticket or gives feedback; see AsyncClient.report_outcome."""
        self._wait(self._client.report_outcome(**outcome))

    def _wait(self, work: Coroutine[Any, Any, ResultT], deadline_s: float | None = None) -> ResultT:
        future = self._start(work)
        try:
            return future.result(self._client.limit_s(deadline_s) + WAIT_SLACK_S)
        except concurrent.futures.CancelledError:
            raise errors.unusable("CLIENT_CLOSED") from None
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise errors.unanswered() from None
        except KeyboardInterrupt:
            future.cancel()
            raise

    def _next(self, events: queue.SimpleQueue[Event], end_s: float) -> Event:
        """Returns the next event of a stream; an error once its time is over."""
        if os.getpid() != self._pid:  # what fills the queue is the parent's
            return errors.unusable("FORKED")
        try:
            return events.get(timeout=max(0.0, end_s - time.monotonic()))
        except queue.Empty:
            return errors.unanswered()

    def _start(self, work: Coroutine[Any, Any, ResultT]) -> concurrent.futures.Future[ResultT]:
        """Hands work to the loop; what is accepted here is ended by ``close`` at the latest."""
        try:
            if os.getpid() != self._pid:
                raise errors.unusable("FORKED")
            with self._lock:
                if self._closed:
                    raise errors.unusable("CLIENT_CLOSED")
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        except BaseException:
            work.close()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Runs a client's loop in its thread until it is stopped."""
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _make(addresses: Sequence[str] | str, options: dict[str, Any]) -> AsyncClient:
    """Channels of grpc.aio belong to the loop that runs when they are made."""
    return AsyncClient(addresses, **options)


async def _close(client: AsyncClient) -> None:
    """Closes the client and ends every call that still runs."""
    await client.close()
    calls = asyncio.all_tasks() - {asyncio.current_task()}
    for call in calls:
        call.cancel()
    if calls:
        await asyncio.wait(calls, timeout=CLOSE_S / 2)


def _let_go(client: AsyncClient, loop: asyncio.AbstractEventLoop, pid: int) -> None:
    """Ends thread and connections of a client that nobody has any more; waits for nothing."""
    if os.getpid() != pid or loop.is_closed() or not loop.is_running():
        return

    async def end() -> None:
        await _close(client)
        loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)


async def _pump(stream: AsyncIterator[Chunk | Answer], events: queue.SimpleQueue[Event]) -> None:
    """Passes a stream on; its end, or the error it ends with, comes last whatever happens."""
    last: BaseException | None = None
    try:
        async for event in stream:
            events.put(event)
    except asyncio.CancelledError as error:
        last = error
        raise
    except Exception as error:
        last = error
    finally:
        events.put(last)
