"""Decisions keep their order when wall clocks are set."""

from __future__ import annotations

import pytest

from services.trainer.stamps import RouterClocks
from tests.fakes.clock import FakeClock
from trainer.learning.online.joining import DecisionRecord

HOUR_S = 3600.0


def made(sequence: int, time_s: float, *, epoch: int = 1, router: str = "r0") -> DecisionRecord:
    """Returns a decision of which only key and stamp matter."""
    return DecisionRecord((router, epoch, sequence), time_s, None, 0, "", "", 1.0, 1.0, "t")


def places(clocks: RouterClocks, *decisions: DecisionRecord, now_s: float) -> list[float]:
    """Returns where decisions are placed."""
    return [clocks.placed(each, now_s).time_s for each in decisions]


def test_time_goes_on_when_this_host_is_set_back() -> None:
    """What is written meanwhile with clocks that were right is not taken for the future's."""
    clock = FakeClock(wall_ns=10_000 * 10**9)
    clocks = RouterClocks(clock)
    assert clocks.now_s() == 10_000.0
    clock.set_by(-HOUR_S)
    clock.move(2.0)
    assert clocks.now_s() == pytest.approx(10_002.0)
    clock.set_by(2 * HOUR_S)
    assert clocks.now_s() == pytest.approx(10_002.0 + HOUR_S)


def test_decisions_go_on_when_a_router_is_set_back_and_right_again() -> None:
    """An hour of decisions would come too late to be learned from."""
    clocks = RouterClocks(FakeClock())
    before = places(clocks, made(1, 10_000.0), made(2, 10_001.0), now_s=10_001.0)
    back = places(clocks, made(3, 6_402.0), made(4, 6_403.5), now_s=10_003.5)
    right = places(clocks, made(5, 10_004.0), now_s=10_004.0)
    assert before == [10_000.0, 10_001.0]
    assert back == [10_001.0, 10_002.5]
    assert right == [10_004.0]


def test_a_router_that_starts_again_with_its_clock_set_back_goes_on() -> None:
    """Its new epoch has smaller stamps than its last one."""
    clocks = RouterClocks(FakeClock())
    assert places(clocks, made(9, 10_000.0), now_s=10_000.0) == [10_000.0]
    assert places(clocks, made(1, 6_401.0, epoch=2), now_s=10_001.0) == [10_000.0]
    assert places(clocks, made(1, 6_401.0, epoch=0), now_s=10_001.0) == [10_000.0]


def test_what_is_read_again_stays_where_it_was() -> None:
    """An older number with an older stamp says nothing about the clock."""
    clocks = RouterClocks(FakeClock())
    places(clocks, made(1, 100.0), made(2, 160.0), now_s=160.0)
    assert places(clocks, made(1, 100.0), made(3, 161.0), now_s=161.0) == [100.0, 161.0]


def test_what_is_read_again_of_a_former_process_stays_where_it_was() -> None:
    """It is older than what the next process wrote, and no clock was set."""
    clocks = RouterClocks(FakeClock())
    places(clocks, made(1, 100.0), made(2, 110.0), made(1, 115.0, epoch=2), now_s=115.0)
    again = (made(2, 110.0), made(2, 116.0, epoch=2))
    assert places(clocks, *again, now_s=116.0) == [110.0, 116.0]


def test_routers_do_not_shift_each_other() -> None:
    """Each has its own clock; what waited in one's memory for long is not moved."""
    clocks = RouterClocks(FakeClock())
    places(clocks, made(1, 10_000.0), now_s=10_000.0)
    other = (made(1, 9_900.0, router="r1"), made(2, 9_900.5, router="r1"))
    assert places(clocks, *other, now_s=10_000.0) == [9_900.0, 9_900.5]


def test_a_router_that_joins_after_all_clocks_were_set_back_is_learned_from() -> None:
    """It is placed among those that go on as if no clock had been set; old records stay."""
    clock = FakeClock(wall_ns=10_000 * 10**9)
    clocks = RouterClocks(clock)
    places(clocks, made(1, 10_000.0), now_s=clocks.now_s())
    clock.set_by(-HOUR_S)
    clock.move(2.0)
    now_s = clocks.now_s()
    joined = made(1, 6_402.0, router="r1"), made(2, 6_402.5, router="r1")
    assert places(clocks, *joined, now_s=now_s) == pytest.approx([10_002.0, 10_002.5])
    assert places(clocks, made(1, 9_999.0, router="r2"), now_s=now_s) == [9_999.0]
    clock.set_by(HOUR_S)
    assert places(clocks, made(3, 10_003.0, router="r1"), now_s=clocks.now_s()) == [10_003.0]
