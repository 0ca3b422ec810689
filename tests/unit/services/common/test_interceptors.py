"""What is around every method, where a real server could not show it at will."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import UnauthenticatedError
from services.common.interceptors import ErrorInterceptor
from services.common.log import get_logger
from services.common.metrics import RpcMetrics
from services.common.running_calls import RunningCalls
from tests.fakes.clock import FakeClock


class _AbortedError(Exception):
    """A call was ended with a status."""


class _Context:
    """A call with so much left of its time limit by the server's clock."""

    def __init__(self, left_s: float | None) -> None:
        self._left_s = left_s

    def time_remaining(self) -> float | None:
        return self._left_s

    def code(self) -> None:
        """Has no status of its own."""

    async def abort(self, *_: Any) -> None:
        """Ends the call as the library does."""
        raise _AbortedError


def _table(registry: CollectorRegistry, clock: FakeClock, **more: Any) -> ErrorInterceptor:
    return ErrorInterceptor(
        metrics=RpcMetrics(registry),
        clock=clock,
        log=get_logger("test"),
        max_message_bytes=1024,
        calls=RunningCalls(10),
        watches=frozenset(),
        **more,
    )


async def test_strangers_are_refused_before_a_message_is_read() -> None:
    """They get a handler that reads none, and are counted; others get the method's own."""
    registry = CollectorRegistry()
    known = (("authorization", "known"),)

    def guard(method: str, handler: Any) -> Any:
        async def refuse(requests: Any, context: Any) -> None:
            raise UnauthenticatedError("who?", reason="MISSING_CREDENTIALS")

        is_open = method.endswith("/Open") or handler.unary_unary
        return handler if is_open else grpc.stream_stream_rpc_method_handler(refuse)

    table = _table(registry, FakeClock(), guard=guard, is_stranger=lambda found: found != known)
    kept: list[Any] = []
    server: Any = SimpleNamespace(add_generic_rpc_handlers=kept.extend)
    own: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(lambda *_: None) for name in ("Own", "Open")
    }
    registrar: Any = table.around(server)
    registrar.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", own),))
    registrar.add_registered_method_handlers("a.B", own)  # of these nobody sees metadata
    (found,) = kept

    def handler_of(method: str, metadata: Any) -> Any:
        return found.service(SimpleNamespace(method=method, invocation_metadata=metadata))

    assert handler_of("/a.B/Own", known).unary_unary
    assert handler_of("/a.B/Open", None).unary_unary
    assert handler_of("/a.B/None", None) is None
    context = _Context(1.0)
    with pytest.raises(_AbortedError):
        await handler_of("/a.B/Own", None).stream_stream(None, context)
    labels = {"method": "a.B/Own", "code": "UNAUTHENTICATED", "reason": "MISSING_CREDENTIALS"}
    assert registry.get_sample_value("tiercel_rpc_handled_total", labels) == 1.0


async def _nothing() -> AsyncIterator[bytes]:
    messages: list[bytes] = []
    for each in messages:
        yield each


@pytest.mark.parametrize("has_heard_all", [True, False])
async def test_a_stream_that_is_heard_out_ends_well_however_it_ends(has_heard_all: bool) -> None:
    """Of others nobody knows at once whether they were ended or broken off; these were."""
    registry = CollectorRegistry()
    table = _table(registry, FakeClock())

    async def behavior(requests: Any, context: Any) -> bool:
        return has_heard_all

    handler: Any = table.wrap("a.B/C", grpc.stream_stream_rpc_method_handler(behavior))
    call = handler.stream_stream(_nothing(), _Context(0.0))
    if has_heard_all:
        await call
    else:
        with pytest.raises(asyncio.CancelledError):
            await call
    labels = {"method": "a.B/C", "code": "OK", "reason": ""}
    found = registry.get_sample_value("tiercel_rpc_handled_total", labels)
    assert found == float(has_heard_all)


class _EndedContext(_Context):
    """A call whose client has said all."""

    async def read(self) -> Any:
        """Has nothing to read."""
        return grpc.aio.EOF  # type: ignore[attr-defined]  # absent from the type stubs


@pytest.mark.parametrize(("answered_s", "waits_s"), [(0.0005, [0.0015]), (0.0025, [])])
async def test_who_answers_longer_than_it_takes_to_be_told_waits_no_more(
    answered_s: float, waits_s: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a stream was broken off is told within 2 ms of its end, while it is answered."""
    clock = FakeClock()
    table = _table(CollectorRegistry(), clock)
    waited_s: list[float] = []

    async def wait(delay_s: float) -> None:
        waited_s.append(delay_s)

    monkeypatch.setattr("asyncio.sleep", wait)

    async def behavior(requests: Any, context: Any) -> None:
        async for _ in requests:
            pass
        clock.move(answered_s)

    handler: Any = table.wrap("a.B/C", grpc.stream_stream_rpc_method_handler(behavior))
    await handler.stream_stream(None, _EndedContext(1.0))
    assert waited_s == pytest.approx(waits_s)


@pytest.mark.parametrize(
    ("left_s", "after_s", "code"),
    [
        (None, 1.0, "CANCELLED"),
        (0.0, 1.0, "DEADLINE_EXCEEDED"),
        (0.04, 0.01, "DEADLINE_EXCEEDED"),  # the way here
        (0.5, 29.5, "DEADLINE_EXCEEDED"),  # a limit of 30 s that was rounded up
        (0.5, 1.0, "CANCELLED"),
        (20.0, 10.0, "CANCELLED"),
    ],
)
async def test_a_call_that_ended_at_its_own_time_limit_is_no_cancellation(
    left_s: float | None, after_s: float, code: str
) -> None:
    """The client's clock ends it a little before the server's."""
    registry, clock = CollectorRegistry(), FakeClock()
    table = _table(registry, clock)

    async def behavior(request: Any, context: Any) -> None:
        clock.move(after_s)
        raise asyncio.CancelledError

    handler: Any = table.wrap("a.B/C", grpc.unary_unary_rpc_method_handler(behavior))
    with pytest.raises(asyncio.CancelledError):
        await handler.unary_unary(b"", _Context(left_s))
    labels = {"method": "a.B/C", "code": code}
    reason = "CLIENT_CANCELLED" if code == "CANCELLED" else "CLIENT_DEADLINE"
    found = registry.get_sample_value("tiercel_rpc_handled_total", {**labels, "reason": reason})
    assert found == 1.0


def test_an_answer_that_is_bytes_goes_out_as_it_is() -> None:
    """Where most of it is known before it is put together of bytes; others are written."""
    table = _table(CollectorRegistry(), FakeClock())
    inner: Any = grpc.unary_unary_rpc_method_handler(lambda *_: None, None, str.encode)
    give = table.wrap("a.B/C", inner).response_serializer
    assert give is not None
    assert (give(b"as it is"), give("written")) == (b"as it is", b"written")
