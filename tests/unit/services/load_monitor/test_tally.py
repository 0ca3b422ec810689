"""Minutes of the routers' counts, in whichever order they come."""

from __future__ import annotations

from typing import Any

from services.common.checks import MAX_COUNT
from services.common.times import timestamp_of
from services.load_monitor.convert import report_from_message
from services.load_monitor.convert_minutes import minute_of
from services.load_monitor.model import EndpointView, Health, Picture, RouterReport
from services.load_monitor.tally import Tally, start_of
from tests.unit.services.load_monitor.rig import endpoint, picture
from tiercel.load_monitor.v1 import system_state_pb2 as pb

START_S = 1_700_000_040
"""Begins a minute."""
NS = 10**9
VIEW = EndpointView(endpoint("e1"), Health.READY, 1.0, 1, (), "")


def counted(
    router_id: str, started_s: int, on_time: int, told_s: int | None = None, **fields: Any
) -> RouterReport:
    """A router that has so many answers in time of one task, each worth one half."""
    outcomes = pb.TaskOutcomes(
        task="sort",
        on_time_count=on_time,
        delivered_reward_sum=on_time / 2,
        smooth_answer_sum=0.75 * on_time,
        answers=[pb.TierAnswers(tier="small", answer_count=on_time)],
        **fields,
    )
    latency = pb.TaskLatency(task="sort", answer_counts=[on_time], first_bucket=on_time % 7)
    attained = pb.TaskAttainment(task="sort", target=0.9, largest_quality=0.8)
    return report_from_message(
        pb.RouterLoad(
            router_id=router_id,
            epoch=started_s * NS,
            sequence=1,
            report_time=None if told_s is None else timestamp_of(told_s * NS),
            task_outcomes=[outcomes],
            task_latencies=[latency],
            task_attainments=[attained],
        )
    )


def seen(*reports: RouterReport) -> Picture:
    """A picture of one endpoint."""
    return picture(1, (VIEW,), reports)


def test_a_minute_has_what_came_within_it() -> None:
    """Of all routers; those that started since from zero, the others from where they stood."""
    tally = Tally(START_S * NS)
    old, new = START_S - 100, START_S + 1
    assert tally.take(seen(counted("old", old, 1_000)), START_S + 1.0) is None
    for second in range(2, 60):
        reports = counted("old", old, 1_000 + second), counted("new", new, second, refused_count=3)
        assert tally.take(seen(*reports), START_S + second) is None
    minute = tally.take(seen(counted("old", old, 1_060), counted("new", new, 60)), START_S + 60.05)
    assert minute is not None
    assert (start_of(minute), minute.observed.seconds, minute.device_count) == (START_S, 60, 1)
    (task,) = minute.tasks
    assert (task.on_time_count, task.refused_count) == (120, 3)
    assert (task.delivered_reward_sum, task.target, task.largest_quality) == (60.0, 0.9, 0.8)
    assert task.smooth_answer_sum == 90.0
    assert [(each.tier, each.answer_count) for each in task.answers] == [("small", 120)]
    assert (task.latency.first_bucket, list(task.latency.answer_counts)) == (3, [1060, 60])
    # The next one starts at nothing.
    reports = counted("old", old, 1_061), counted("new", new, 60)
    assert tally.take(seen(*reports), START_S + 61.0) is None
    last = tally.take(seen(*reports), START_S + 120.0)
    assert last is not None
    assert last.tasks[0].on_time_count == 1


def test_a_router_that_starts_again_is_another_one() -> None:
    """And what a killed worker had counted is no negative traffic."""
    tally = Tally(START_S * NS)
    tally.take(seen(counted("r", START_S + 1, 10)), START_S + 2.0)
    tally.take(seen(counted("r", START_S + 1, 6)), START_S + 3.0)
    tally.take(seen(counted("r", START_S + 4, 5)), START_S + 5.0)
    minute = tally.take(seen(counted("r", START_S + 4, 7)), START_S + 60.0)
    assert minute is not None
    assert minute.tasks[0].on_time_count == 17


def test_what_nobody_watched_is_no_part_of_a_minute() -> None:
    """Without a state, or after a gap, less is observed; without any look there is no minute."""
    tally = Tally((START_S + 30) * NS)
    assert tally.take(seen(), START_S + 31.0) is None
    assert tally.take(None, START_S + 32.0) is None
    assert tally.take(seen(), START_S + 50.0) is None
    assert tally.take(seen(), START_S + 51.0) is None
    minute = tally.take(None, START_S + 60.0)
    assert minute is not None
    assert minute.observed.seconds == 2
    assert tally.take(None, START_S + 120.0) is None


def test_a_minute_that_begins_within_a_gap_is_watched_from_the_next_look_on() -> None:
    """A machine that slept did not watch what came before it woke up."""
    tally = Tally(START_S * NS)
    tally.take(seen(), START_S + 1.0)
    first = tally.take(seen(), START_S + 100.0)
    assert tally.take(seen(), START_S + 101.0) is None
    second = tally.take(seen(), START_S + 120.0)
    assert first is not None
    assert second is not None
    assert (first.observed.seconds, second.observed.seconds) == (1, 1)


def test_a_clock_set_back_begins_another_minute() -> None:
    """Nothing is counted twice and no minute is longer than one."""
    tally = Tally(START_S * NS)
    for second in range(1, 30):
        tally.take(seen(counted("r", START_S, second)), START_S + second)
    minute = tally.take(seen(counted("r", START_S, 30)), START_S - 300.0)
    assert minute is not None
    assert (minute.tasks[0].on_time_count, minute.observed.seconds) == (30, 29)


def test_a_minute_that_a_set_clock_made_longer_can_be_read_again() -> None:
    """It is watched for a minute at most, as whoever reads it from the store asks."""
    tally = Tally(START_S * NS)
    for second in (*range(50), *range(10, 60)):
        assert tally.take(seen(counted("new", START_S + 1, 5)), START_S + second) is None
    minute = tally.take(seen(counted("new", START_S + 1, 5)), START_S + 60.05)
    assert minute is not None
    assert minute_of(minute.SerializeToString()).observed.seconds == 60


def test_whether_a_router_was_there_before_is_told_by_its_own_clock() -> None:
    """That of this host may be an hour behind it, or ahead; or a router's was set meanwhile."""
    for hour_s in (3600, 0, -3600):
        tally = Tally(START_S * NS)
        now_s = START_S + hour_s + 10
        old = counted("old", now_s - 100, 1_000, now_s)
        new = counted("new", now_s - 5, 7, now_s)
        back = counted("back", now_s + 3600, 1_000, now_s)
        tally.take(seen(old, new, back), START_S + 10.0, 10.0)
        tally.take(seen(), START_S + 11.0, 11.0)
        minute = tally.take(seen(), START_S + 60.0, 60.0)
        assert minute is not None
        assert minute.tasks[0].on_time_count == 7


def test_whatever_routers_claim_a_minute_can_be_written() -> None:
    """Many processes of one name with the largest count that there is."""
    tally = Tally(START_S * NS)
    for number in range(1_100):
        tally.take(seen(counted("r", START_S + 1 + number, MAX_COUNT)), START_S + 3.0)
    minute = tally.take(seen(), START_S + 60.0)
    assert minute is not None
    assert minute.tasks[0].on_time_count == MAX_COUNT
