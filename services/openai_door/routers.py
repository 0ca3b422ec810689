"""The routers behind this door: calls in turn, the next one where one is not reached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.access.tls import Tls
from services.common.channels import open_channel
from services.common.clock import Clock
from tiercel.calls import answer_of, give_up
from tiercel.errors import is_transport_failure
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc
from tiercel.timing import timing

Metadata = tuple[tuple[str, str], ...]

_OPTIONS: Sequence[tuple[str, int | str]] = (
    # A name may stand for several routers: each gets calls of this channel.
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # What routers send is bounded by them.
    ("grpc.max_receive_message_length", -1),
)
_CHECK_TIMEOUT_S = 1.0
_AWAY_AFTER = 3
"""Questions for its health in a row that a router does not answer until it counts as away."""
_END_OF_STREAM: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # absent from the type stubs
_SERVING = health_pb2.HealthCheckResponse.SERVING


class UnreadableError(Exception):
    """A router answered with what is no message."""


class Router:
    """One address of routers.

    Args:
        address: `host:port`.
        tls: Certificates; None means plain text.
    """

    def __init__(self, address: str, tls: Tls | None) -> None:
        self.address = address
        self.is_serving = False
        self._unanswered = 0
        self.channel = open_channel(address, _OPTIONS, tls)
        self.stub: Any = pb2_grpc.RouterInferenceServiceStub(self.channel)
        self._health: Any = health_pb2_grpc.HealthStub(self.channel)

    async def check(self) -> None:
        """Asks for its health and remembers the answer."""
        try:
            reply = await self._health.Check(
                health_pb2.HealthCheckRequest(), timeout=_CHECK_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            # A router that is late with an answer may only be busy.
            self._unanswered += 1
            is_late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            self.is_serving &= is_late and self._unanswered < _AWAY_AFTER
        else:
            self._unanswered = 0
            self.is_serving = reply is not None and reply.status == _SERVING


class Routers:
    """All routers, in turn.

    Args:
        addresses: Where they are.
        tls: Certificates; None means plain text.
        clock: For the time between two checks.
        check_interval_s: That time, seconds.
        on_change: Told after each check how many of them serve.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        tls: Tls | None,
        clock: Clock,
        check_interval_s: float,
        on_change: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._routers = [Router(address, tls) for address in dict.fromkeys(addresses)]
        self._clock = clock
        self._check_interval_s = check_interval_s
        self._on_change = on_change
        self._next = 0
        self._checked = asyncio.Event()

    @property
    def are_serving(self) -> bool:
        """True if one of them serves."""
        return any(router.is_serving for router in self._routers)

    def in_turn(self) -> Sequence[Router]:
        """Returns every router: the next in turn first, those that do not serve last.

        The only one comes twice: its address may stand for several processes, and the one that
        ends just now is not the one that takes the next connection.
        """
        routers, start = self._routers, self._next
        if len(routers) == 1:
            return (*routers, *routers)
        self._next = (start + 1) % len(routers)
        line = routers[start:] + routers[:start]
        return sorted(line, key=_is_away)

    async def watch(self) -> None:
        """Asks for their health, for ever."""
        while True:
            await asyncio.gather(*(router.check() for router in self._routers))
            self._on_change(sum(router.is_serving for router in self._routers))
            if self.are_serving:
                self._checked.set()
            await self._clock.sleep(self._check_interval_s)

    async def ready(self) -> None:
        """Returns once one of them has served."""
        await self._checked.wait()

    async def close(self) -> None:
        """Closes the channels; calls under way are cancelled."""
        for router in self._routers:
            await router.channel.close()


class Exchange:
    """The calls for one request: one router is asked, another where none was reached.

    Args:
        routers: Whom to ask.
        metadata: Who calls, and its trace.
        limit_s: When all of it is given up, seconds from `start_s`.
        start_s: When the request came, monotonic seconds.
    """

    def __init__(
        self, routers: Routers, *, metadata: Metadata, limit_s: float, start_s: float
    ) -> None:
        self._routers = routers
        self._metadata = metadata
        self._limit_s = limit_s
        self._end_s = start_s + limit_s
        self._call: Any = None
        self.is_cancelled = False

    def cancel(self) -> None:
        """Ends the call under way: the client has gone, and its work stops in Triton."""
        self.is_cancelled = True
        if self._call is not None:
            give_up(self._call)

    async def answer(self, request: pb2.GenerateRequest) -> pb2.GenerateResponse:
        """Returns a router's answer.

        Raises:
            AioRpcError: It refused or failed, or none was reached.
            UnreadableError: Its answer is no message.
            CancelledError: The exchange was cancelled.
        """
        reply: pb2.GenerateResponse = await self._begin("Generate", request)
        self._call = None  # nothing is left to cancel
        return reply

    async def first_piece(self, request: pb2.GenerateStreamRequest) -> pb2.GenerateStreamResponse:
        """Returns the first piece of a router's answer; raises what `answer` does."""
        piece: pb2.GenerateStreamResponse = await self._begin("GenerateStream", request)
        return piece

    async def next_piece(self) -> pb2.GenerateStreamResponse:
        """Returns the next piece, of the same router; raises what `answer` does.

        A stream ends with its completion: asking for more is an error.
        """
        piece: pb2.GenerateStreamResponse = _readable(await self._call.read())
        return piece

    async def _begin(self, method: str, request: Any) -> Any:
        """Returns the first message of the first router that is reached."""
        failure: grpc.aio.AioRpcError | None = None
        for router in self._routers.in_turn():
            left_s = self._end_s - time.monotonic()
            if self.is_cancelled:
                raise asyncio.CancelledError
            if failure is not None and left_s <= 0.0:
                break
            timeout_s, stated = timing(self._limit_s, left_s)
            call = self._call = getattr(router.stub, method)(
                request, timeout=timeout_s, metadata=(*self._metadata, stated)
            )
            try:
                return _readable(await (answer_of(call) if method == "Generate" else call.read()))
            except grpc.aio.AioRpcError as error:
                if not is_transport_failure(error):
                    raise
                failure = error
                router.is_serving = False
        assert failure is not None  # there is always a router
        raise failure


def _is_away(router: Router) -> bool:
    return not router.is_serving


def _readable(message: Any) -> Any:
    """Returns a message that is one; a stream that ends without its completion is none either."""
    if message is None or message is _END_OF_STREAM:  # None: what grpc.aio cannot read
        raise UnreadableError
    return message
