"""A link is tried again for ever, more slowly the longer it fails."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable

from services.common.log import get_logger
from services.router_inference.reconnect import reconnecting
from tests.fakes.clock import FakeClock, settle

Session = Callable[[Callable[[], None]], Awaitable[None]]


@contextlib.asynccontextmanager
async def link(clock: FakeClock, session: Session) -> AsyncIterator[list[str]]:
    """Keeps a link up; yields the reasons for which it was down."""
    reasons: list[str] = []
    task = asyncio.create_task(
        reconnecting(
            session=session,
            on_down=reasons.append,
            clock=clock,
            longest_wait_s=1.0,
            log=get_logger("test"),
            peer="peer",
        )
    )
    await settle()
    yield reasons
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_peer_that_is_away_is_asked_ever_less_often() -> None:
    """Waits double up to the longest: some five tries in the first second, one a second later."""
    clock, starts = FakeClock(), list[float]()

    async def session(works: Callable[[], None]) -> None:
        starts.append(clock.monotonic_s())

    async with link(clock, session) as reasons:
        await clock.advance(10.0)
    waits = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert all(0.039 < waits[0] <= wait < 1.21 for wait in waits)
    assert all(wait > 0.79 for wait in waits[5:])
    assert set(reasons) == {"the stream ended"}


async def test_a_session_that_worked_is_followed_by_a_short_wait() -> None:
    """A link that breaks after an hour is back at once."""
    clock, starts = FakeClock(), list[float]()

    async def session(works: Callable[[], None]) -> None:
        starts.append(clock.monotonic_s())
        if len(starts) == 8:
            works()

    async with link(clock, session):
        await clock.advance(10.0)
    assert starts[8] - starts[7] < 0.061


async def test_an_error_nobody_expected_ends_no_link() -> None:
    """A bug in reading one message is named, and the link is tried again."""
    clock, calls = FakeClock(), list[int]()

    async def session(works: Callable[[], None]) -> None:
        calls.append(1)
        raise KeyError("a field")

    async with link(clock, session) as reasons:
        await clock.advance(1.0)
    assert len(calls) > 2
    assert set(reasons) == {"KeyError"}


async def test_a_call_that_its_channel_cancels_ends_no_link() -> None:
    """So it is once certificates were renewed; nobody asked the link itself to stop."""
    clock, calls = FakeClock(), list[int]()

    async def session(works: Callable[[], None]) -> None:
        calls.append(1)
        raise asyncio.CancelledError

    async with link(clock, session) as reasons:
        await clock.advance(1.0)
    assert len(calls) > 2
    assert set(reasons) == {"the call was cancelled"}
