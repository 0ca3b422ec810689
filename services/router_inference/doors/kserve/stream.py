"""One call of ModelStreamInfer: many requests, each answered as if it were alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

import grpc.aio
from tritonclient.grpc import service_pb2 as kserve

from services.common.clock import Clock
from services.common.errors import DeadlineExceededError, DomainError
from services.common.time_limits import TimeLimits
from services.router_inference.doors.kserve.asking import Asked, in_words_of_the_door
from services.router_inference.doors.kserve.convert import Reply, error_message
from services.router_inference.doors.kserve.models import EarlyError
from services.router_inference.doors.servicer import READER_GRACE_S, REASON_NOT_READ
from services.router_inference.job import Job
from services.router_inference.path.dispatch import Dispatcher
from services.router_inference.path.relay import StreamRelay
from services.router_inference.path.sink import TextSink

_MOST_AT_ONCE = 1_024
"""Requests of one call that are under way; further ones wait at their client."""


class Answering(NamedTuple):
    """What answers the requests of a call.

    Attributes:
        dispatcher: runs them.
        new_relay: makes the relay of one streamed answer.
        on_end: told the model and the job of each that has ended.
        clock: tells the time.
        limits: end what takes too long.
    """

    dispatcher: Dispatcher
    new_relay: Callable[[], StreamRelay]
    on_end: Callable[[str, Job], None]
    clock: Clock
    limits: TimeLimits


class RequestStream:
    """The call. It ends when its client says so and all is answered, or when it cannot be read."""

    def __init__(
        self,
        *,
        context: grpc.aio.ServicerContext[Any, Any],
        answering: Answering,
        read: Callable[[kserve.ModelInferRequest], tuple[Asked, Job]],
        ends_by_status: bool,
    ) -> None:
        """Takes the call and its parts.

        Args:
            context: The call.
            answering: What answers.
            read: Makes a checked job of a request.
            ends_by_status: True ends the call with the status of the first request that fails.
        """
        self._context = context
        self._answering = answering
        self._read = read
        self._ends_by_status = ends_by_status
        self._lock = asyncio.Lock()
        self._room = asyncio.Semaphore(_MOST_AT_ONCE)
        self._reader: asyncio.Task[None] | None = None
        self.was_left = False
        """True if the client could not say all it had to say."""

    def leave(self) -> None:
        """Takes no further request; the call ends with those under way."""
        if self._reader is not None and not self.was_left:
            self.was_left = True
            self._reader.cancel()

    async def run(self, requests: AsyncIterator[kserve.ModelInferRequest]) -> None:
        """Answers requests until the client has no more.

        Raises:
            DomainError: The call ends with its status.
        """
        try:
            async with asyncio.TaskGroup() as group:
                await self._take(requests, group)
        except BaseExceptionGroup as failures:
            # The first one ended the others.
            raise failures.exceptions[0] from None

    async def _take(
        self, requests: AsyncIterator[kserve.ModelInferRequest], group: asyncio.TaskGroup
    ) -> None:
        """Begins to answer requests, until there are no more or none is to be taken."""
        # In the call's own task: each call would pay for one more.
        reader = self._reader = asyncio.current_task()
        assert reader is not None
        try:
            async for request in requests:
                await self._room.acquire()
                task = group.create_task(self._answer(request))
                task.add_done_callback(lambda _: self._room.release())
        except asyncio.CancelledError:
            if not self.was_left or reader.uncancel():  # others end the call
                raise
        finally:
            self._reader = None

    async def _answer(self, request: kserve.ModelInferRequest) -> None:
        """Answers one request; raises DomainError where that ends the call."""
        try:
            asked, job = self._read(request)
        except DomainError as error:
            await self._tell(error, request)
            return
        dispatcher, _, on_end, clock, limits = self._answering
        try:
            with limits.within(job.cutoff_s - clock.monotonic_s() + READER_GRACE_S):
                if job.is_stream:
                    await self._relay(asked, job)
                else:
                    sink = TextSink()
                    await dispatcher.answer(job, sink)
                    last = sink.text(), job.output_tokens
                    await self._write(Reply(asked).end(job, last))
        except TimeoutError:
            raise _not_read() from None
        except DomainError as error:
            await self._tell(in_words_of_the_door(error, asked), request)
        finally:
            on_end(asked.model.name, job)

    async def _relay(self, asked: Asked, job: Job) -> None:
        """Sends an answer piece by piece; the last one says how it ended."""
        dispatcher, new_relay = self._answering.dispatcher, self._answering.new_relay
        reply, last = Reply(asked), None
        async with aclosing(new_relay().answer(dispatcher, job)) as portions:
            async for portion in portions:
                if job.is_complete:
                    last = portion
                else:
                    await self._write(reply.portion(*portion))
        await self._write(reply.end(job, last))

    async def _tell(self, error: DomainError, request: kserve.ModelInferRequest) -> None:
        """Says that a request has no complete answer."""
        if self._ends_by_status and not isinstance(error, EarlyError):
            raise error
        try:
            async with asyncio.timeout(READER_GRACE_S):
                await self._write(error_message(error, request))
        except TimeoutError:
            raise _not_read() from None

    async def _write(self, message: kserve.ModelStreamInferResponse) -> None:
        """Sends a message once its turn has come."""
        async with self._lock:
            await self._context.write(message)


def _not_read() -> DeadlineExceededError:
    # A writer waits for its reader for ever.
    return DeadlineExceededError("an answer was not read in time", reason=REASON_NOT_READ)
