"""What clients said of answers, of several routers: counted once, and kept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from router.quality import RatedTier, Rating
from services.load_monitor.convert import report_from_message
from services.load_monitor.convert_ratings import messages_of_table
from services.load_monitor.model import RatingTable, RouterReport
from services.load_monitor.ratings import GONE_S, MOST_PROCESSES, MOST_RATED, MeshRatings
from tests.fakes.clock import FakeClock
from tiercel.load_monitor.v1 import system_state_pb2 as pb

SMALL = "copa", "small"
LARGE = "copa", "large"
_sequence = itertools.count(1)


class Router:
    """A router process that hears scores and tells what it heard."""

    def __init__(self, name: str, epoch: int = 1) -> None:
        self.name, self.epoch = name, epoch
        self._heard: dict[RatedTier, list[float]] = {}

    def hear(self, scores: Sequence[float], tier: RatedTier = SMALL) -> None:
        """Hears of answers."""
        self._heard.setdefault(tier, []).extend(scores)

    def report(self) -> RouterReport:
        """Returns its report, as a monitor reads it."""
        return told(self.name, {t: mean_of(s) for t, s in self._heard.items()}, self.epoch)


def told(name: str, table: RatingTable, epoch: int = 1) -> RouterReport:
    """Returns a report of a router that tells a table."""
    return report_from_message(
        pb.RouterLoad(
            router_id=name,
            epoch=epoch,
            sequence=next(_sequence),
            task_ratings=messages_of_table(table),
        )
    )


def mean_of(scores: Sequence[float]) -> Rating:
    """Returns plain means."""
    count = len(scores)
    return Rating(count, sum(scores) / count, sum(score**2 for score in scores) / count)


def same(one: RatingTable, other: RatingTable) -> None:
    """Checks that two tables say the same, but for rounding."""
    assert one.keys() == other.keys()
    for tier, rating in one.items():
        assert tuple(rating) == pytest.approx(tuple(other[tier]), abs=1e-9)


@pytest.fixture
def mesh(clock: FakeClock) -> MeshRatings:
    """The ratings of a mesh in which nobody has said anything."""
    return MeshRatings(clock=clock)


def test_two_routers_tell_what_one_would_that_had_heard_all(mesh: MeshRatings) -> None:
    """However often each tells, of tiers that both heard of, and those that one did."""
    one, two = Router("r1"), Router("r2")
    for scores in ([1.0, 0.5], [0.25], [0.0, 0.75, 1.0]):
        one.hear(scores)
        mesh.take(one.report())
        two.hear([1.0 - score for score in scores])
        two.hear(scores, LARGE)
        mesh.take(two.report())
        mesh.take(two.report())
    both = [1.0, 0.5, 0.25, 0.0, 0.75, 1.0]
    every = [*both, *(1.0 - score for score in both)]
    same(mesh.table, {SMALL: mean_of(every), LARGE: mean_of(both)})


def test_what_a_router_heard_outlives_it(mesh: MeshRatings) -> None:
    """The process that comes after it begins at nothing, and adds to what is there."""
    first, second = Router("r1", epoch=1), Router("r1", epoch=2)
    first.hear([0.2] * 10)
    mesh.take(first.report())
    second.hear([0.8] * 10)
    mesh.take(second.report())
    same(mesh.table, {SMALL: mean_of([0.2] * 10 + [0.8] * 10)})


def test_a_report_that_came_late_through_another_monitor_adds_nothing(mesh: MeshRatings) -> None:
    """Nor does the next one count again what was counted before it."""
    router = Router("r1")
    router.hear([0.5] * 3)
    late = router.report()
    router.hear([1.0] * 3)
    for report in (router.report(), late, router.report()):
        mesh.take(report)
    assert mesh.table[SMALL].answers == 6


def test_a_table_that_did_not_change_is_the_same_object(mesh: MeshRatings) -> None:
    """By which others know it."""
    router = Router("r1")
    router.hear([0.5])
    mesh.take(router.report())
    before = mesh.table
    mesh.take(router.report())
    assert mesh.table is before


def test_who_goes_on_from_what_another_monitor_kept_counts_nothing_twice(
    mesh: MeshRatings, clock: FakeClock
) -> None:
    """Routers tell it all again; what they heard meanwhile is added."""
    one, two = Router("r1"), Router("r2")
    for router in (one, two):
        router.hear([0.5] * 5)
        mesh.take(router.report())
    later = MeshRatings(clock=clock)
    later.adopt(mesh.table, mesh.counted())
    two.hear([1.0] * 5)
    for router in (one, two):
        later.take(router.report())
    same(later.table, {SMALL: mean_of([0.5] * 10 + [1.0] * 5)})


def test_tiers_that_the_mesh_does_not_have_are_left_out(clock: FakeClock) -> None:
    """Until it has them: then all counts that was said."""
    known = {SMALL}
    mesh = MeshRatings(clock=clock, is_known=lambda *tier: tier in known)
    router = Router("r1")
    for tier in (SMALL, LARGE):
        router.hear([0.5], tier)
    mesh.take(router.report())
    assert mesh.table.keys() == {SMALL}
    known.add(LARGE)
    router.hear([1.0], LARGE)
    mesh.take(router.report())
    same(mesh.table, {SMALL: mean_of([0.5]), LARGE: mean_of([0.5, 1.0])})
    known.remove(LARGE)
    mesh.adopt(mesh.table, {})
    assert mesh.table.keys() == {SMALL}


async def test_there_is_an_end_to_what_is_kept(clock: FakeClock) -> None:
    """Of tiers, of processes, and of those that are gone."""
    mesh = MeshRatings(clock=clock)
    tables = [
        {(f"t{number}", f"m{place}"): mean_of([0.5]) for place in range(200)}
        for number in range(MOST_RATED // 200 + 1)
    ]
    for number, table in enumerate(tables):
        mesh.take(told(f"r{number}", table))
    assert len(mesh.table) == MOST_RATED
    assert sum(len(table) for table in mesh.counted().values()) == MOST_RATED
    for number in range(MOST_PROCESSES + 1):
        mesh.take(told(f"p{number}", {("t0", "m0"): mean_of([0.5])}))
    assert len(mesh.counted()) == MOST_PROCESSES
    await clock.advance(GONE_S + 1.0)
    assert mesh.counted() == {}


async def test_a_router_that_tells_nothing_new_is_not_taken_for_gone(
    mesh: MeshRatings, clock: FakeClock
) -> None:
    """What is counted of it would be counted again."""
    router = Router("r1")
    router.hear([0.5] * 5)
    report = router.report()
    for _ in range(3):
        mesh.take(report)
        await clock.advance(0.7 * GONE_S)
        mesh.counted()
    router.hear([1.0])
    mesh.take(router.report())
    assert mesh.table[SMALL].answers == 6


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (Rating(10, 1.0, 1.0), Rating(11, 0.0, 0.0)),
        (Rating(10, 0.0, 0.0), Rating(11, 1.0, 0.0)),
        (Rating(1, 0.5, 1.0), Rating(2**53, 1.0, 0.0)),
    ],
)
def test_whatever_a_router_tells_means_stay_means(
    mesh: MeshRatings, first: Rating, then: Rating
) -> None:
    """Also where what it told before and after fit together in no way."""
    for rating in (first, then, first, then._replace(answers=2**53)):
        mesh.take(told("r1", {SMALL: rating}))
        count, mean, square = mesh.table[SMALL]
        assert 0 < count <= 2**53
        assert mean * mean - 1e-9 <= square <= mean + 1e-9 <= 1.0 + 1e-9
