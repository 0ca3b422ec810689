"""Goodput where deadlines are for tokens, from counts that only grow."""

from __future__ import annotations

import pytest

from services.common.token_goodput import TokenGoodput, TokenWindow, since_start
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as pb

PER_TOKEN = common_pb2.SLO_KIND_PER_TOKEN
FIRST_TOKEN = common_pb2.SLO_KIND_FIRST_TOKEN


def told(
    on_time: int,
    missed: int = 0,
    smooth: float = 0.0,
    kind: common_pb2.SloKind.ValueType = PER_TOKEN,
) -> common_pb2.TokenOutcomes:
    """What a router has counted since its start."""
    return common_pb2.TokenOutcomes(
        slo_kind=kind,
        on_time_count=on_time,
        missed_count=missed,
        smooth_answer_sum=smooth or on_time,
    )


def router(*outcomes: common_pb2.TokenOutcomes, name: str = "r", epoch: int = 1) -> pb.RouterLoad:
    """A router with one task."""
    task = pb.TaskOutcomes(task="chat", token_outcomes=outcomes)
    return pb.RouterLoad(router_id=name, epoch=epoch, task_outcomes=[task])


def state(*routers: pb.RouterLoad) -> pb.SystemState:
    """A mesh."""
    return pb.SystemState(routers=routers)


def test_goodput_is_growth_over_the_time_watched() -> None:
    """What routers had counted before is left out; a late answer counts by what is left of it."""
    window = TokenWindow()
    (first,) = window.push(state(router(told(1_000))), 100.0)
    assert (first.ended_count, first.attained, first.goodput_rps) == (0, None, None)
    window.push(state(router(told(1_004))), 102.0)
    (found,) = window.push(state(router(told(1_030, 10, 1_036.0))), 110.0)
    assert found == TokenGoodput("chat", "per_token", 30, 10, 36.0, 10.0)
    assert (found.attained, found.smooth_share) == (0.75, 0.9)
    assert (found.goodput_rps, found.smooth_goodput_rps) == (3.0, 3.6)


def test_where_there_are_no_deadlines_for_tokens_there_is_no_row() -> None:
    """Nor is there one for a kind that is not known here."""
    window = TokenWindow()
    later: common_pb2.SloKind.ValueType = 9  # type: ignore[assignment]
    assert window.push(state(router(), router(told(3, kind=later), name="s")), 100.0) == []


def test_what_is_older_than_the_window_counts_no_more() -> None:
    """Two answers a second for two minutes: the last minute has about 120 of them."""
    window, found = TokenWindow(60.0), []
    for step in range(1_201):
        at_s = 0.1 * step
        found = window.push(state(router(told(2 * int(at_s)))), 100.0 + at_s)
    (row,) = found
    assert row.span_s == pytest.approx(60.0, abs=1.1)
    assert row.goodput_rps == pytest.approx(2.0, abs=0.05)
    assert len(window._steps) <= 62


def test_routers_and_kinds_are_added_up_apart() -> None:
    """Two routers of one task; its first-token deadlines are a row of their own."""
    window = TokenWindow()
    window.push(state(router(told(5)), router(told(7, kind=FIRST_TOKEN), name="s")), 10.0)
    rows = window.push(
        state(router(told(8)), router(told(9, kind=FIRST_TOKEN), told(4), name="s")), 12.0
    )
    counts = {each.slo_kind: each.on_time_count for each in rows}
    assert counts == {"per_token": 7, "first_token": 2}


def test_a_router_that_starts_anew_takes_nothing_away() -> None:
    """It is another process; what the one before had answered stays in the window."""
    window = TokenWindow()
    window.push(state(router(told(1_000))), 10.0)
    window.push(state(router(told(1_006))), 12.0)
    (gone,) = window.push(state(pb.RouterLoad(router_id="r", epoch=2)), 13.0)
    assert gone.on_time_count == 6
    window.push(state(router(told(1), epoch=2)), 14.0)
    (found,) = window.push(state(router(told(4), epoch=2)), 16.0)
    assert found.on_time_count == 9


def test_a_report_that_does_not_tell_yet_is_no_count_of_zero() -> None:
    """A monitor that has just started hears of a router before it hears what ended there."""
    window = TokenWindow()
    assert window.push(state(pb.RouterLoad(router_id="r", epoch=1)), 10.0) == []
    window.push(state(router(told(1_000))), 11.0)
    (found,) = window.push(state(router(told(1_002))), 12.0)
    assert found.on_time_count == 2
    (same,) = window.push(state(pb.RouterLoad(router_id="r", epoch=1)), 13.0)
    assert same.on_time_count == 2


@pytest.mark.parametrize("later_s", [3_600.0, -3_600.0])
def test_after_a_long_gap_the_window_starts_anew(later_s: float) -> None:
    """Nobody looked for an hour, or the clock was set back."""
    window = TokenWindow()
    window.push(state(router(told(10))), 10_000.0)
    (found,) = window.push(state(router(told(5_000))), 10_000.0 + later_s)
    assert (found.on_time_count, found.goodput_rps) == (0, None)


def test_a_router_tells_what_was_since_its_start() -> None:
    """No time is known, so there is no rate."""
    (found,) = since_start("chat", [told(30, 10, 36.0)])
    assert (found.attained, found.smooth_share, found.goodput_rps) == (0.75, 0.9, None)
