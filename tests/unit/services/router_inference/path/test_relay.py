"""Streamed answers: the first piece at once, the others at most every few milliseconds."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from services.common.errors import UnavailableError
from services.common.tiers.errors import TierUnavailableError
from services.router_inference.job import Job, Outcome
from services.router_inference.path.relay import StreamRelay
from tests.unit.services.router_inference.parts import Behaviour, Rig, make_rig
from tests.unit.services.router_inference.scenario import scenario


def portions(rig: Rig, job: Job, coalesce_s: float) -> AsyncGenerator[tuple[str, int], None]:
    """Runs a streamed request."""
    return StreamRelay(coalesce_s).answer(rig.core.dispatcher, job)


@scenario
async def test_a_slow_tier_is_relayed_piece_by_piece() -> None:
    """Pieces that come more slowly than the pause are not delayed or joined."""
    rig = make_rig()
    rig.tier().default = Behaviour(pieces=("a", "b", "c"), step_s=0.01)
    got = [each async for each in portions(rig, rig.job(is_stream=True), 0.003)]
    assert got == [("a", 1), ("b", 1), ("c", 1)]


@scenario
async def test_a_fast_tier_costs_one_message_per_pause() -> None:
    """The first piece goes at once; what comes during a pause goes together, and the rest last."""
    rig = make_rig()
    rig.tier().default = Behaviour(pieces=tuple("abcdefgh"), step_s=0.001)
    got = [each async for each in portions(rig, rig.job(is_stream=True), 0.0035)]
    assert got[0] == ("a", 1)
    assert 3 <= len(got) <= 4
    assert "".join(text for text, _ in got) == "abcdefgh"
    assert sum(count for _, count in got) == 8


@scenario
async def test_only_pieces_that_come_in_a_pause_set_its_timer() -> None:
    """A tier that is slower than the pause costs no timer for a token."""
    loop, timers = asyncio.get_running_loop(), list[float]()
    call_later = loop.call_later

    def counted(delay_s: float, callback: Any, *parts: Any, **more: Any) -> asyncio.TimerHandle:
        if isinstance(getattr(callback, "__self__", None), StreamRelay):
            timers.append(delay_s)
        return call_later(delay_s, callback, *parts, **more)

    loop.call_later = counted  # type: ignore[method-assign, assignment]
    for step_s, expected in ((0.01, 0), (0.001, 2)):
        rig = make_rig()
        rig.tier().default = Behaviour(pieces=tuple("abcdefg"), step_s=step_s)
        timers.clear()
        async for _ in portions(rig, rig.job(is_stream=True), 0.0035):
            pass
        assert len(timers) == expected


@scenario
async def test_what_came_while_a_portion_was_read_waits_for_the_pause_too() -> None:
    """A reader that takes its time gets no more messages than a quick one."""
    rig = make_rig()
    rig.tier().default = Behaviour(pieces=tuple("abcdefgh"), step_s=0.001)
    got = []
    async for text, _ in portions(rig, rig.job(is_stream=True), 0.003):
        got.append((text, round(rig.clock.monotonic_s() - 1000.0, 4)))
        await asyncio.sleep(0.0015)
    assert got == [("a", 0.001), ("bcde", 0.0055), ("fgh", 0.008)]


@scenario
async def test_the_last_piece_comes_with_the_end() -> None:
    """Whoever gets it knows how the request ended, and can say both in one message."""
    rig = make_rig()
    rig.tier().default = Behaviour(pieces=("a", "b"), ends_with_last=True)
    job = rig.job(is_stream=True)
    got = [(text, job.is_complete) async for text, _ in portions(rig, job, 0.003)]
    assert got == [("a", False), ("b", True)]


@scenario
async def test_a_failure_comes_after_what_was_relayed() -> None:
    """The client has read the pieces; the error ends the stream."""
    rig = make_rig()
    gone = TierUnavailableError("UNAVAILABLE", "connection refused")
    rig.tier().default = Behaviour(error=gone, error_after=1)
    stream = portions(rig, rig.job(is_stream=True), 0.003)
    assert await anext(stream) == ("a", 1)
    with pytest.raises(UnavailableError):
        await anext(stream)


@scenario
async def test_a_reader_that_stops_cancels_the_request() -> None:
    """Nothing goes on for a client that has gone."""
    rig = make_rig()
    rig.tier().default = Behaviour(pieces=tuple("abc"), step_s=0.05)
    job = rig.job(is_stream=True)
    stream = portions(rig, job, 0.003)
    await anext(stream)
    await stream.aclose()
    await asyncio.sleep(0.0)
    assert job.outcome is Outcome.CANCELLED
    assert rig.tier().calls[0]["end"] == "cancelled"
    rig.assert_settled()


@scenario
async def test_a_reader_that_stops_after_a_failure_leaves_no_error_behind() -> None:
    """The request has ended with it already; nobody is told of an exception that nobody took."""
    rig, complaints = make_rig(), list[object]()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    gone = TierUnavailableError("UNAVAILABLE", "connection refused")
    rig.tier().default = Behaviour(error=gone, error_after=1)
    job = rig.job(is_stream=True)
    stream = portions(rig, job, 0.003)
    await anext(stream)
    await asyncio.sleep(1.0)
    assert job.outcome is Outcome.FAILED
    await stream.aclose()
    del stream
    gc.collect()
    assert complaints == []


@scenario
async def test_an_error_that_meets_the_leaving_client_is_no_traceback() -> None:
    """The job ends and the client leaves in one turn of the loop: nobody else took the error."""
    rig = make_rig()
    job = rig.job(is_stream=True)
    unheard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, facts: unheard.append(facts))

    class Refusing:
        async def answer(self, job: Job, sink: object) -> None:
            raise UnavailableError("NO_USABLE_ENDPOINT")

    async def read() -> None:
        async for _ in StreamRelay(0.003).answer(Refusing(), job):  # type: ignore[arg-type]
            raise AssertionError("nothing was answered")

    reader = asyncio.ensure_future(read())
    await asyncio.sleep(0)  # the reader waits, the job has not begun
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    del reader
    await asyncio.sleep(0)
    gc.collect()
    assert unheard == []
