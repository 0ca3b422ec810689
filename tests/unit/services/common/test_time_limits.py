"""Time limits of many tasks by one timer: they end what `asyncio.timeout` would."""

from __future__ import annotations

import asyncio
import math

import pytest

from services.common.time_limits import TimeLimit, TimeLimits

_SOON_S, _LATE_S = 0.02, 3_600.0


def _now_s() -> float:
    return asyncio.get_running_loop().time()


async def test_what_takes_too_long_is_ended() -> None:
    """By TimeoutError, at its time and not before."""
    begun_s = _now_s()
    with pytest.raises(TimeoutError), TimeLimits().until(begun_s + _SOON_S) as limit:
        await asyncio.sleep(_LATE_S)
    assert limit.has_expired
    assert _now_s() - begun_s >= _SOON_S


async def test_an_earlier_limit_is_kept_beside_a_later_one() -> None:
    """The timer is set for the earliest; the other task goes on."""
    limits = TimeLimits()

    async def wait(until_s: float) -> None:
        with limits.until(until_s):
            await asyncio.sleep(_LATE_S)

    late = asyncio.create_task(wait(_now_s() + _LATE_S))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await wait(_now_s() + _SOON_S)
    assert not late.done()
    late.cancel()
    await asyncio.wait((late,))


async def test_a_limit_that_is_set_anew_counts_from_then_on() -> None:
    """Later as well as sooner, and also once the timer has looked in between."""
    limits, begun_s = TimeLimits(), _now_s()

    async def put_off() -> None:
        with limits.until(begun_s + _SOON_S) as limit:
            limit.set(begun_s + 2 * _SOON_S)
            await asyncio.sleep(1.5 * _SOON_S)
            limit.set(begun_s + 3 * _SOON_S)
            await asyncio.sleep(_LATE_S)

    async def hurry() -> None:
        with limits.until(None) as endless:
            assert endless.until_s == math.inf
            endless.set(_now_s())
            await asyncio.sleep(_LATE_S)

    with pytest.raises(TimeoutError):
        await put_off()
    assert _now_s() - begun_s >= 3 * _SOON_S
    with pytest.raises(TimeoutError):
        await hurry()


async def test_many_limits_take_one_timer() -> None:
    """Those of tasks that have ended stay as they are, and set none anew."""
    limits, loop, set_s = TimeLimits(), asyncio.get_running_loop(), []
    call_at = loop.call_at

    def counted(when: float, *rest: object) -> asyncio.TimerHandle:
        set_s.append(when)
        return call_at(when, *rest)  # type: ignore[arg-type]

    loop.call_at = counted  # type: ignore[method-assign, assignment]
    for number in range(10):
        with limits.until(_now_s() + _LATE_S + number):
            pass
    assert len(set_s) == 1


async def test_what_others_end_is_no_timeout() -> None:
    """A task that is cancelled ends as cancelled, though its time may be over at that moment."""
    entered: list[TimeLimit] = []

    async def wait() -> None:
        with TimeLimits().until(_now_s() + _LATE_S) as limit:
            entered.append(limit)
            await asyncio.sleep(_LATE_S)

    for is_late in (False, True):
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        if is_late:
            entered[-1].expire()
        await asyncio.wait((task,))
        assert task.cancelled()


async def test_an_error_within_stays_what_it_is() -> None:
    """Also where it comes of the end; the task may go on, and is cancelled no more."""

    async def fail() -> None:
        with TimeLimits().until(_now_s() + _SOON_S):
            try:
                await asyncio.sleep(_LATE_S)
            except asyncio.CancelledError:
                raise ValueError("own") from None

    with pytest.raises(ValueError, match="own"):
        await fail()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
