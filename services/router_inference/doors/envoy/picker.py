"""The Endpoint Picker: Envoy asks for each HTTP exchange where it goes, and tells how it went.

The picker chooses endpoint *and* tier. It sees headers, not bodies, unless the gateway sends them;
then it hands them back as they are. What it answers follows the Endpoint Picker Protocol 1.0.0.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import grpc.aio

from services.common.clock import Clock
from services.common.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    UnavailableError,
)
from services.common.running_calls import going_away
from services.common.time_limits import TimeLimit, TimeLimits
from services.router_inference.doors.envoy.places import Places
from services.router_inference.doors.envoy.replies import Answer
from services.router_inference.doors.envoy.talk import REASON_ORDER, Talk
from services.router_inference.doors.intake import Intake
from services.router_inference.path.decide import REASON_NO_ENDPOINT
from services.router_inference.path.exchanges import Exchanges
from services.router_inference.view.view import View
from tiercel.envoy.v3 import external_processor_pb2 as pb2
from tiercel.envoy.v3 import external_processor_pb2_grpc as pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

REASON_SILENT = "NO_MESSAGE_IN_TIME"
_FIRST_MESSAGE_S = 10.0
"""How long a stream may stay without its first message, seconds."""
_SENT_S = 1.0
"""How long a stop waits for an answer that is on its way to the gateway, seconds."""


class Picker(pb2_grpc.ExternalProcessorServicer):
    """Serves gateways.

    Attributes:
        intake: checks requests.
        exchanges: begins them.
        places: where endpoints are reached.
        view: the fleet and the traffic.
        clock: of the process.
        reads_bodies: True reads the model in JSON bodies that gateways send.
    """

    def __init__(
        self,
        *,
        intake: Intake,
        exchanges: Exchanges,
        places: Places,
        view: View,
        clock: Clock,
        client_of: Callable[[Context], str],
        reads_bodies: bool = False,
    ) -> None:
        """Takes its parts; `client_of` tells whose a call is."""
        self.reads_bodies = reads_bodies
        self.intake = intake
        self.exchanges = exchanges
        self.places = places
        self.view = view
        self.clock = clock
        self._client_of = client_of
        self._turn = itertools.count()
        self._limits = TimeLimits()
        self._open: dict[Talk, TimeLimit] = {}
        self._is_leaving = False

    def leave(self) -> None:
        """Ends the streams that serve nobody's request, now and from now on.

        Those of requests under way end as they would, but a gateway that has gone silent is not
        waited for beyond its request's cutoff.
        """
        self._is_leaving = True
        for talk, limit in self._open.items():
            self._bound(talk, limit)

    # A generator could not tell a gateway that has gone; gRPC takes either kind.
    async def Process(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb2.ProcessingRequest], context: Context
    ) -> bool:
        """Answers what a gateway tells of one HTTP exchange, until that ends.

        Returns:
            True if the gateway has told all, however it ends the stream.
        """
        client, metadata = partial(self._client_of, context), context.invocation_metadata()
        talk = Talk(self, client, tuple(metadata or ()))
        loop = asyncio.get_running_loop()
        try:
            talk.until_s = loop.time() + _FIRST_MESSAGE_S
            with self._limits.until(talk.until_s) as limit:
                self._open[talk] = limit
                if self._is_leaving:
                    self._bound(talk, limit)
                async for message in request_iterator:
                    responses = talk.answer(message)
                    talk.is_written_to = True
                    if talk.is_new:
                        talk.is_new = False
                        left_s = talk.longest_s
                        talk.until_s = None if left_s is None else loop.time() + left_s
                        self._bound(talk, limit)
                    for response in responses:
                        await context.write(response)
                    talk.is_written_to = False
                    if talk.is_over:
                        break
                    if self._is_leaving:
                        self._bound(talk, limit)
        except TimeoutError:
            if talk.awaits_body:
                await self._refuse(talk.give_up_body(is_leaving=self._is_leaving), context)
            else:
                self._give_up(talk)
        except InvalidArgumentError as error:
            # A message that could not be taken, too large for instance, is the client's.
            if not talk.awaits_body or error.reason == REASON_ORDER:
                raise
            await self._refuse(talk.refuse(error), context)
        finally:
            self._open.pop(talk, None)
            if talk.exchange is not None:
                talk.exchange.drop()
        return talk.is_over

    async def _refuse(self, response: Answer, context: Context) -> None:
        """Sends a stream's last answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SENT_S):
                await context.write(response)

    def _bound(self, talk: Talk, limit: TimeLimit) -> None:
        """Sets when a stream is given up: sooner at a stop than otherwise."""
        until_s = talk.until_s
        if self._is_leaving:
            # One that is interrupted while the library sends is never answered.
            left_s = _SENT_S if talk.is_written_to else talk.leaving_s()
            leaving_s = asyncio.get_running_loop().time() + left_s
            until_s = leaving_s if until_s is None else min(until_s, leaving_s)
        if not limit.has_expired:
            limit.set(until_s)

    def _give_up(self, talk: Talk) -> None:
        """Ends a stream whose time is over: without an error where the gateway needs nothing more.

        Raises:
            UnavailableError: It told nothing before the stop.
            DeadlineExceededError: It told too little in time.
        """
        if self._is_leaving and not talk.is_carried:
            if talk.has_begun:
                return
            raise going_away() from None
        raise DeadlineExceededError(
            "the gateway told nothing in time", reason=REASON_SILENT
        ) from None

    def any_address(self, names: frozenset[str] | None) -> str:
        """Returns the address of a usable endpoint, each in its turn.

        Raises:
            UnavailableError: There is none.
        """
        now_s = self.clock.monotonic_s()
        availability_C = self.view.current_fleet(now_s).arrays.availability_C
        usable = {
            self.places.address(target): None
            for row, target in enumerate(self.view.fleet.targets)
            if availability_C[row] > 0.0 and (names is None or target.endpoint in names)
        }
        usable.pop("", None)
        if not usable:
            raise UnavailableError(
                REASON_NO_ENDPOINT,
                "no usable endpoint has an HTTP address this request may go to",
                retry_after_s=self.view.fleet.retry_after_s(now_s),
            )
        return list(usable)[next(self._turn) % len(usable)]
