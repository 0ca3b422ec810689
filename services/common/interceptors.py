"""Around every method: errors become status by the table, calls are counted and timed."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias, cast

import grpc
import grpc.aio
from grpc_status import rpc_status

from services.common.access.guard import address_without_port
from services.common.clock import Clock
from services.common.errors import (
    DomainError,
    InvalidArgumentError,
    NotServedError,
    UnauthenticatedError,
    status_of,
)
from services.common.log import Logger
from services.common.metrics import RpcMetrics
from services.common.running_calls import RunningCalls

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_END_OF_STREAM: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # absent from the type stubs
_TOLD_S = 0.002
UNKNOWN_METHOD = "unknown"
"""Name among the counts of methods that are not there."""
REASON_NO_METHOD = "METHOD_NOT_FOUND"
# A client ends its call by its own clock. The server's ends later: by the way here, and by what the
# library rounds the limit up to (three digits of it travel).
_DEADLINE_BAND_S = 0.05
_DEADLINE_BAND_SHARE = 0.02


class _Rejected:
    """Stands for a request message that could not be taken; raised as an error by the handler."""

    __slots__ = ("error",)

    def __init__(self, error: DomainError) -> None:
        self.error = error


class ErrorInterceptor:
    """Wraps every method once: checks message sizes, applies the error table, counts and times.

    It wraps handlers as they are registered, not calls as they come: the library's interceptors
    cost every call about as much as all that is done here.

    Args:
        metrics: Where calls are counted.
        clock: For durations.
        log: Where bugs are logged with their traceback.
        max_message_bytes: Largest request message; a larger one is INVALID_ARGUMENT. (The limit of
            the library itself must be higher: it answers without details and without a count.)
        calls: The server's running calls.
        watches: Methods, as `package.Service/Method`, whose calls serve nobody's request: they
            wait for news, and end at once when the server stops.
        open_watches: Those of them that need no identity.
        guard: Puts the check of a method's callers before its handler.
        is_stranger: Tells by a call's metadata that nobody known makes it: then it is refused
            before any message is read. A handler is called only once the first one is in memory,
            in as many calls as a connection has. None where metadata alone does not tell.
        on_bad_message: Told the reason of each message that is too large or malformed.
    """

    def __init__(
        self,
        *,
        metrics: RpcMetrics,
        clock: Clock,
        log: Logger,
        max_message_bytes: int,
        calls: RunningCalls,
        watches: frozenset[str],
        open_watches: frozenset[str] = frozenset(),
        guard: Callable[[str, Handler], Handler] = lambda _, handler: handler,
        is_stranger: Callable[[Any], bool] | None = None,
        on_bad_message: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._guard = guard
        self.is_stranger = is_stranger
        self._on_bad_message = on_bad_message
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._max_message_bytes = max_message_bytes
        self._calls = calls
        self._watches = watches
        self._open_watches = open_watches

    def around(self, server: grpc.aio.Server) -> grpc.aio.Server:
        """Returns a stand-in for `server` to register servicers with; only that works on it."""
        return cast("grpc.aio.Server", _Registrar(server, self))

    def answer_the_rest(self, server: grpc.aio.Server) -> None:
        """Answers methods that no servicer has; to be called once all are registered."""
        server.add_generic_rpc_handlers((_UnknownMethods(self),))

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns the handler of a method with everything around it.

        Args:
            method: `package.Service/Method`.
            handler: The handler as registered.
        """
        return self.unguarded(method, self._guard(method, handler))

    def refusing(self, method: str) -> Handler | None:
        """Returns the handler that strangers get in a method's place; None if they may call it."""
        if self.is_stranger is None:
            return None
        # A stream each way, whatever the method's kind is: it is answered before a message comes.
        unknown: Handler = grpc.stream_stream_rpc_method_handler(_not_known)
        guarded = self._guard(method, unknown)
        return None if guarded is unknown else self.unguarded(method, guarded)

    def unguarded(self, method: str, handler: Handler) -> Handler:
        """Returns the handler with all but the check of who calls around it."""
        call = _Call(
            method,
            self._metrics,
            self._clock,
            self._log,
            calls=self._calls,
            is_watch=method in self._watches,
            is_open=method in self._open_watches,
        )
        take = self._taking(handler.request_deserializer)
        give = _giving(handler.response_serializer)
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                call.stream(handler.stream_stream, call.messages, is_fed=True), take, give
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                call.unary(handler.stream_unary, call.messages, is_fed=True), take, give
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                call.stream(handler.unary_stream, _one), take, give
            )
        return grpc.unary_unary_rpc_method_handler(
            call.unary(handler.unary_unary, _one), take, give
        )

    def _taking(self, deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
        limit = self._max_message_bytes

        def reject(problem: str, bound: str, reason: str) -> _Rejected:
            self._on_bad_message(reason)
            return _Rejected(InvalidArgumentError("request", problem, bound, reason=reason))

        def take(payload: bytes) -> Any:
            if len(payload) > limit:
                problem = f"message of {len(payload)} bytes is too large"
                return reject(problem, f"{limit} bytes", "MESSAGE_TOO_LARGE")
            if deserialize is None:
                return payload
            try:
                return deserialize(payload)
            except Exception:  # whatever the parser raises, the bytes are at fault
                problem = "is not a valid message (malformed bytes, or text that is not UTF-8)"
                return reject(problem, "", "MALFORMED_MESSAGE")

        return take


def _giving(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """Returns what makes bytes of an answer; one that is bytes goes out as it is."""
    if serialize is None:
        return None

    def give(answer: Any) -> bytes:
        return answer if type(answer) is bytes else serialize(answer)

    return give


class _Registrar:
    """Passes handlers on to a server, each wrapped."""

    def __init__(self, server: grpc.aio.Server, table: ErrorInterceptor) -> None:
        self._server = server
        self._table = table

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(
            tuple(_WrappedGenericHandler(handler, self._table) for handler in handlers)
        )

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        if self._table.is_stranger is not None:
            return  # the library takes these without a word; the generic ones see metadata
        wrapped = {
            method: self._table.wrap(f"{service}/{method}", handler)
            for method, handler in handlers.items()
        }
        server: Any = self._server  # the type stubs lack the method
        server.add_registered_method_handlers(service, wrapped)


class _WrappedGenericHandler(grpc.GenericRpcHandler):
    """Wraps what another generic handler finds, each method at its first call."""

    def __init__(self, inner: grpc.GenericRpcHandler, table: ErrorInterceptor) -> None:
        self._inner = inner
        self._table = table
        self._wrapped: dict[str, tuple[Handler, Handler | None]] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        method, table = handler_call_details.method, self._table
        found = self._wrapped.get(method)
        if found is None:
            handler = self._inner.service(handler_call_details)
            if handler is None:
                return None  # the next one may know it, `_UnknownMethods` at last
            name = method.removeprefix("/")
            found = self._wrapped[method] = table.wrap(name, handler), table.refusing(name)
        wrapped, refusing = found
        if refusing is None or table.is_stranger is None:
            return wrapped
        is_stranger = table.is_stranger(handler_call_details.invocation_metadata or ())
        return refusing if is_stranger else wrapped


class _UnknownMethods(grpc.GenericRpcHandler):
    """Answers every method, as one that is not there; the last of a server's handlers.

    The library would answer too, but without a reason and without a count. All have one name among
    the counts, so that callers who invent names cannot fill the memory.
    """

    def __init__(self, table: ErrorInterceptor) -> None:
        # A stream each way: it is answered before a message comes, and whatever its kind is.
        self._handler = table.unguarded(
            UNKNOWN_METHOD, grpc.stream_stream_rpc_method_handler(_not_there)
        )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        return self._handler


async def _not_there(requests: AsyncIterator[Any], context: Context) -> None:
    raise NotServedError("no such method is served here", reason=REASON_NO_METHOD)


async def _not_known(requests: AsyncIterator[Any], context: Context) -> None:
    # The guard before it has said so already, unless the caller became known in between.
    raise UnauthenticatedError("the key or token is not known here", reason="BAD_CREDENTIALS")


def _one(request: Any, _: Context) -> Any:
    if type(request) is _Rejected:
        raise request.error
    return request


async def _until_told(context: Context, ended_s: float) -> None:
    """Returns at the end of a stream that its client ended; raises CancelledError if it was left.

    To whoever reads it a stream that was broken off looks as one that has ended; that it was broken
    off is told a moment later, by a thread of the library. Most answers take longer than that.

    Args:
        context: The call.
        ended_s: For how long the stream has seemed to have ended, seconds.
    """
    if ended_s < _TOLD_S:
        await asyncio.sleep(_TOLD_S - ended_s)
    left_s = context.time_remaining()
    if left_s is not None and left_s <= 0.0:
        raise asyncio.CancelledError


class _Each:
    """The messages of a call that is fed, one after the other.

    The library hands over a generator, which a handler may leave before its end: then closing it,
    and one around it, would take a task each.
    """

    __slots__ = ("_context", "_end_s", "_monotonic_s")

    def __init__(self, context: Context, monotonic_s: Callable[[], float]) -> None:
        self._context = context
        self._monotonic_s = monotonic_s
        self._end_s: float | None = None

    @property
    def ended_s(self) -> float:
        """Time since their end was read, seconds; 0 while it was not."""
        return 0.0 if self._end_s is None else self._monotonic_s() - self._end_s

    def __aiter__(self) -> _Each:
        return self

    async def __anext__(self) -> Any:
        message = await self._context.read()
        if message is _END_OF_STREAM:
            self._end_s = self._monotonic_s()
            raise StopAsyncIteration
        return _one(message, self._context)


class _Call:
    """Runs the calls of one method."""

    def __init__(
        self,
        method: str,
        metrics: RpcMetrics,
        clock: Clock,
        log: Logger,
        *,
        calls: RunningCalls,
        is_watch: bool,
        is_open: bool,
    ) -> None:
        self._method = method
        self._calls = calls
        self._is_watch = is_watch
        self._is_open = is_open
        # Whoever asks for health needs the answer most when there is no room.
        self._is_bounded = not method.startswith("grpc.health.")
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._duration = metrics.add_method(method)

    def messages(self, _: Any, context: Context) -> _Each:
        """Returns the messages of a call that is fed; a `check` for `unary` and `stream`."""
        return _Each(context, self._clock.monotonic_s)

    def unary(
        self, behavior: Any, check: Callable[[Any, Context], Any], *, is_fed: bool = False
    ) -> Any:
        """Returns the handler; `is_fed` says that its client sends one message after another.

        One that is fed and returns True has heard all, however its client ends the stream.
        """
        calls, is_bounded = self._calls, self._is_bounded
        monotonic_s, observe = self._clock.monotonic_s, self._duration.observe

        async def handle(request: Any, context: Context) -> Any:
            start_s = monotonic_s()
            calls.count += 1
            try:
                if self._is_watch:
                    with calls.watching(self._opened_from(context)):
                        response = await behavior(taken := check(request, context), context)
                else:
                    if is_bounded:
                        calls.check_room()
                    response = await behavior(taken := check(request, context), context)
                if is_fed and response is not True:
                    await _until_told(context, taken.ended_s)
            except BaseException as error:  # one place decides about all of them
                await self._fail(error, context, start_s)
            else:
                self._done(context)
                return response
            finally:
                calls.count -= 1
                observe(monotonic_s() - start_s)

        return handle

    def stream(
        self, behavior: Any, check: Callable[[Any, Context], Any], *, is_fed: bool = False
    ) -> Any:
        """Returns the handler; see `unary`."""
        if inspect.iscoroutinefunction(behavior):
            # It sends by `context.write` and returns at the end, as a unary method does.
            return self.unary(behavior, check, is_fed=is_fed)

        async def handle(request: Any, context: Context) -> AsyncIterator[Any]:
            start_s = self._clock.monotonic_s()
            calls = self._calls
            calls.count += 1
            try:
                if self._is_watch:
                    with calls.watching(self._opened_from(context)):
                        async for response in behavior(taken := check(request, context), context):
                            with calls.sending():
                                yield response
                else:
                    calls.check_room()
                    async for response in behavior(taken := check(request, context), context):
                        yield response
                if is_fed:
                    await _until_told(context, taken.ended_s)
            except GeneratorExit:
                self._count_left(context, start_s)
                raise
            except BaseException as error:  # one place decides about all of them
                await self._fail(error, context, start_s)
            else:
                self._done(context)
            finally:
                calls.count -= 1
                self._duration.observe(self._clock.monotonic_s() - start_s)

        return handle

    def _opened_from(self, context: Context) -> str | None:
        """Returns the caller's address, where whoever comes may open such calls."""
        return address_without_port(context) if self._is_open else None

    def _done(self, context: Context) -> None:
        code = context.code()
        if not code or code is grpc.StatusCode.OK:
            self._count("OK", "")
        else:
            self._count(getattr(code, "name", str(code)), "")

    def _count(self, code: str, reason: str) -> None:
        self._metrics.count(self._method, code, reason)

    def _count_left(self, context: Context, start_s: float) -> None:
        """Counts a call whose client went away, or let its own deadline pass."""
        left_s = context.time_remaining()
        if left_s is not None and left_s <= max(
            _DEADLINE_BAND_S,
            _DEADLINE_BAND_SHARE * (left_s + self._clock.monotonic_s() - start_s),
        ):
            self._count("DEADLINE_EXCEEDED", "CLIENT_DEADLINE")
        else:
            self._count("CANCELLED", "CLIENT_CANCELLED")

    async def _fail(self, error: BaseException, context: Context, start_s: float) -> NoReturn:
        if isinstance(error, asyncio.CancelledError | grpc.aio.InternalError):
            # The library's own error: the call it should have answered has ended.
            self._count_left(context, start_s)
            raise asyncio.CancelledError from error
        if isinstance(error, grpc.aio.AbortError) or not isinstance(error, Exception):
            # The method answered by itself (a proxied status), or the process is ending.
            code = context.code()
            self._count(getattr(code, "name", "INTERNAL"), "ABORTED_BY_METHOD")
            raise error
        status = status_of(error)
        if status.is_bug:
            self._log.exception("rpc_bug", error, method=self._method)
        self._count(status.code.name, status.reason)
        reply = rpc_status.to_status(status.rich)
        try:
            await context.abort(reply.code, reply.details, reply.trailing_metadata)
        except grpc.aio.InternalError as gone:
            raise asyncio.CancelledError from gone
        raise AssertionError("abort does not return")
