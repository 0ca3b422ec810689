"""What became of minutes' requests: no figure gains by turning requests away."""

from __future__ import annotations

import math

import pytest

from services.common.books import books_of, reckon
from services.common.latency_buckets import BOUNDS_S
from tiercel.load_monitor.v1 import minutes_pb2 as pb
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb


def task(
    name: str = "sort",
    *,
    on_time: int = 0,
    late: int = 0,
    refused: int = 0,
    quality: float = 1.0,
    target: float = 0.9,
) -> pb.TaskMinute:
    """A task's minute; answers in time earn `quality`, the largest tier would earn 1."""
    latency = state_pb.TaskLatency(
        task=name,
        answer_counts=[on_time],
        first_bucket=BOUNDS_S.index(0.128),
        cut_off_count=late,
    )
    latency.default_deadline.FromMilliseconds(200)
    return pb.TaskMinute(
        task=name,
        on_time_count=on_time,
        late_count=late,
        refused_count=refused,
        delivered_reward_sum=quality * on_time,
        largest_quality=1.0,
        target=target,
        answers=[state_pb.TierAnswers(tier="large", answer_count=on_time)],
        latency=latency,
    )


def minute(*tasks: pb.TaskMinute, hindsight: pb.Hindsight | None = None) -> pb.Minute:
    """A minute of a mesh of two devices."""
    found = pb.Minute(tasks=tasks, device_count=2, hindsight=hindsight)
    found.observed.FromSeconds(60)
    return found


def hindsight(recorded: int, bound: float, *points: float) -> pb.Hindsight:
    """What a trainer found of one task, and what static-large earns on 1, 2, ... devices."""
    return pb.Hindsight(
        tasks=[pb.TaskHindsight(task="sort", recorded_count=recorded, bound_sum=bound)],
        static_large=[
            pb.StaticLarge(device_count=n, performance=value) for n, value in enumerate(points, 1)
        ],
    )


def test_smooth_answers_are_told_or_not_known() -> None:
    """A late answer counts its part; without the sum of some router nothing is claimed."""
    told, more = task(on_time=90, late=10), task("copy", on_time=5)
    told.smooth_answer_sum, more.smooth_answer_sum = 93.5, 5.0
    books = books_of([minute(told, more)])
    assert books.tasks["sort"].smooth_answers() == 93.5
    assert books.total.smooth_answers() == 98.5
    assert books_of([minute(told), minute(task(on_time=90))]).total.smooth_answers() is None
    assert books_of([]).total.smooth_answers() == 0.0


def test_minutes_add_up() -> None:
    """Counts, shares, latencies, and in how many minutes a target was missed."""
    books = books_of([minute(task(on_time=90, late=10)), minute(task(on_time=80, refused=20))])
    sort = books.tasks["sort"]
    assert (sort.ended, sort.attained) == (200, 0.85)
    assert (sort.told_minutes, sort.missed_minutes) == (2, 1)
    assert sort.performance == pytest.approx(0.85)
    assert sort.given_up == pytest.approx(0.15)
    assert sort.latency_s(0.5) == pytest.approx(0.125, rel=0.05)
    assert sort.latency_s(0.99) == math.inf
    assert sort.answers == {"large": 170}
    assert (books.total.ended, books.observed_s, books.device_count) == (200, 120.0, 2.0)


def test_a_cancelled_request_is_in_no_figure_of_quality() -> None:
    """The client took it back."""
    told = task(on_time=10)
    told.cancelled_count = 5
    sort = books_of([minute(told)]).tasks["sort"]
    assert (sort.ended, sort.performance, sort.counts["cancelled"]) == (10, 1.0, 5)


@pytest.mark.parametrize(("refused", "late"), [(10, 0), (0, 10)])
def test_turning_requests_away_never_lowers_a_regret(refused: int, late: int) -> None:
    """Of ten more requests that earned nothing, against the largest tier and the bound alike."""
    served = minute(task(on_time=90, quality=0.5), hindsight=hindsight(90, 63.0))
    more = minute(
        task(on_time=90, quality=0.5, refused=refused, late=late),
        hindsight=hindsight(90 + late, 63.0),
    )
    before, after = books_of([served]).tasks["sort"], books_of([more]).tasks["sort"]
    lost = [(each.largest - each.reward) / each.ended for each in (before, after)]
    assert [before.given_up, after.given_up] == lost
    assert lost[1] > lost[0]
    missing = [each.reckoned.bound - each.reckoned.reward for each in (before, after)]
    assert missing[0] == pytest.approx(18.0)
    assert missing[1] >= missing[0]
    assert after.reckoned.ended == before.reckoned.ended + 10


def test_a_minute_without_records_has_no_figure() -> None:
    """Nobody looked, the trainer says why not, or too many records are lost."""
    told = task(on_time=100)
    assert reckon(minute(told)) is None
    assert reckon(minute(told, hindsight=pb.Hindsight(problem="too many"))) is None
    assert reckon(minute(told, hindsight=hindsight(89, 80.0))) is None
    assert reckon(minute(told, hindsight=hindsight(90, 80.0))) is not None
    books = books_of([minute(told, hindsight=pb.Hindsight(problem="too many")), minute(told)])
    assert (books.problems, books.reckoned_minutes, books.static_large) == (
        {"too many": 1},
        0,
        None,
    )
    assert books.tasks["sort"].reckoned.regret is None


def test_requests_beyond_the_edge_of_the_minute_weigh_no_more() -> None:
    """Records of 110 requests, of which the counters put 100 into the minute."""
    found = reckon(minute(task(on_time=100, quality=0.5), hindsight=hindsight(110, 99.0)))
    assert found is not None
    assert found["sort"].bound == pytest.approx(90.0)


def test_static_large_needs_devices_for_the_whole_time() -> None:
    """One number over all minutes: a calm one pays for a busy one, as with real devices."""
    calm = minute(task(on_time=100, quality=0.9), hindsight=hindsight(100, 99.0, 1.0))
    busy = minute(
        task(on_time=100, quality=0.8), hindsight=hindsight(100, 99.0, 0.1, 0.4, 0.71, 0.9)
    )
    assert books_of([calm]).static_large == 1.0
    assert books_of([busy]).static_large == 4.0
    assert books_of([calm, busy]).static_large == 3.0
    never = minute(task(on_time=100, quality=0.95), hindsight=hindsight(100, 99.0, 0.1, 0.9))
    assert books_of([never]).static_large == math.inf
