"""What clients said of answers outlives monitors, with and without Redis."""

from __future__ import annotations

from collections.abc import Callable

from router.quality import Rating
from services.load_monitor.coordination import Role
from services.load_monitor.model import RouterReport
from services.load_monitor.shared_ratings import INTERVAL_S
from tests.fakes.clock import FakeClock
from tests.fakes.state_store import SwitchableStore
from tests.unit.services.load_monitor.rig import Monitor
from tests.unit.services.load_monitor.test_ratings import told

Make = Callable[[str], Monitor]
SMALL = "copa", "small"


def heard(name: str, answers: int, mean: float = 0.5) -> RouterReport:
    """Returns the report of a router that has heard of so many answers."""
    return told(name, {SMALL: Rating(answers, mean, mean)})


def count(monitor: Monitor) -> int:
    """Returns how many ratings the newest state tells of."""
    return sum(tier.rating_count for task in monitor.state.task_ratings for tier in task.tiers)


async def test_all_monitors_tell_what_routers_told_to_any(make: Make, clock: FakeClock) -> None:
    """The leader adds up; the others serve its states."""
    leader, follower = make("m1"), make("m2")
    async with leader.running(), follower.running():
        leader.board.take_report(heard("r1", 3), "one")
        follower.board.take_report(heard("r2", 4), "two")
        await clock.advance(1.0)
        assert count(leader) == count(follower) == 7


async def test_the_next_leader_goes_on_where_the_last_one_was(make: Make, clock: FakeClock) -> None:
    """What was told since it stored them is told again, and nothing counts twice."""
    leader, follower = make("m1"), make("m2")
    async with follower.running():
        async with leader.running():
            leader.board.take_report(heard("gone", 10), "one")
            leader.board.take_report(heard("r1", 3), "two")
            await clock.advance(2.0 * INTERVAL_S)
            leader.board.take_report(heard("r1", 4), "two")
        follower.board.take_report(heard("r1", 5), "two")
        await clock.advance(2.0 * INTERVAL_S)
        assert follower.coordinator.role is Role.LEADER
        follower.board.take_report(heard("r1", 5), "two")
        await clock.advance(1.0)
        assert count(follower) == 15


async def test_ratings_outlive_all_monitors(make: Make, clock: FakeClock) -> None:
    """Those told a moment before the last one stopped too."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(1.0)
        monitor.board.take_report(heard("r1", 3), "one")
        await clock.advance(0.2)
        await monitor.coordinator.close()
    await clock.advance(3.0)
    later = make("m2")
    async with later.running():
        await clock.advance(3.0)
        assert count(later) == 3
        later.board.take_report(heard("r1", 4), "one")
        await clock.advance(1.0)
        assert count(later) == 4


async def test_ratings_are_stored_when_redis_is_back(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """Also where it has lost what was there."""
    monitor = make("m1")
    async with monitor.running():
        monitor.board.take_report(heard("r1", 3), "one")
        await clock.advance(2.0 * INTERVAL_S)
        store.is_down = True
        monitor.board.take_report(heard("r1", 5), "one")
        await clock.advance(3.0)
        await store.target.set_aside_ratings()  # type: ignore[attr-defined]
        store.is_down = False
        await clock.advance(3.0 * INTERVAL_S)
        assert count(monitor) == 5
    later = make("m2")
    async with later.running():
        await clock.advance(3.0)
        assert count(later) == 5


async def test_stored_ratings_that_cannot_be_read_are_set_aside(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """What this monitor knows is stored anew."""
    await store.save_ratings(b"nonsense", 7, 0)
    monitor = make("m1")
    async with monitor.running():
        monitor.board.take_report(heard("r1", 3), "one")
        await clock.advance(2.0 * INTERVAL_S)
        stored = await store.load_ratings()
        assert stored is not None
        assert b"copa" in stored[1]
        await store.save_ratings(b"nonsense again", stored[0] + 1, stored[0])
        await clock.advance(2.0 * INTERVAL_S)
        stored = await store.load_ratings()
        assert stored is not None
        assert b"copa" in stored[1]
        assert count(monitor) == 3


async def test_nothing_is_stored_while_nobody_says_anything(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """Nor again what is stored already."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(2.0 * INTERVAL_S)
        assert await store.load_ratings() is None
        monitor.board.take_report(heard("r1", 3), "one")
        await clock.advance(5.0 * INTERVAL_S)
        stored = await store.load_ratings()
        assert stored is not None
        assert stored[0] == 1
