"""Targets are set on several monitors, with and without Redis."""

from __future__ import annotations

from collections.abc import Callable

from services.load_monitor.targets import TargetOverride
from tests.fakes.clock import FakeClock
from tests.fakes.state_store import SwitchableStore
from tests.unit.services.load_monitor.rig import Monitor

Make = Callable[[str], Monitor]


def said(
    clock: FakeClock, task: str, target: float | None, expire_s: float = 0.0
) -> TargetOverride:
    """Returns what a caller sets now."""
    now_ns = clock.wall_ns()
    expire_ns = now_ns + round(expire_s * 1e9) if expire_s else 0
    return TargetOverride(task, target, now_ns, "ops", "", expire_ns)


def shown(monitor: Monitor) -> dict[str, float]:
    """Returns the targets of the newest state."""
    return {each.task: each.target for each in monitor.state.targets.overrides}


async def test_a_target_set_at_one_monitor_is_told_by_all(make: Make, clock: FakeClock) -> None:
    """At the follower as well as at the leader, and so is that it was given back."""
    leader, follower = make("m1"), make("m2")
    async with leader.running(), follower.running():
        await follower.coordinator.set_target(said(clock, "copa", 0.999))
        await clock.advance(1.0)
        assert shown(leader) == shown(follower) == {"copa": 0.999}
        await leader.coordinator.set_target(said(clock, "copa", None))
        await clock.advance(1.0)
        assert shown(leader) == shown(follower) == {}


async def test_the_later_of_two_callers_wins_whatever_their_clocks_say(
    make: Make, clock: FakeClock
) -> None:
    """A monitor's clock may be behind."""
    one, two = make("m1"), make("m2")
    async with one.running(), two.running():
        await one.coordinator.set_target(said(clock, "copa", 0.9))
        clock.set_by(-30.0)
        taken = await two.coordinator.set_target(said(clock, "copa", 0.95))
        await clock.advance(1.0)
        assert taken.target == 0.95
        assert shown(one) == shown(two) == {"copa": 0.95}


async def test_a_target_set_while_redis_is_away_is_stored_when_it_is_back(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """It counts at once where it was set, and outlives that monitor."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(1.0)
        store.is_down = True
        await monitor.coordinator.set_target(said(clock, "copa", 0.999))
        await clock.advance(1.0)
        assert shown(monitor) == {"copa": 0.999}
        store.is_down = False
        await clock.advance(2.0)
    await clock.advance(3.0)
    later = make("m2")
    async with later.running():
        await clock.advance(3.0)
        assert shown(later) == {"copa": 0.999}


async def test_a_target_set_for_a_time_leaves_the_state(make: Make, clock: FakeClock) -> None:
    """Nobody has to do anything."""
    monitor = make("m1")
    async with monitor.running():
        await monitor.coordinator.set_target(said(clock, "copa", 0.999, expire_s=5.0))
        await clock.advance(4.0)
        assert shown(monitor) == {"copa": 0.999}
        await clock.advance(3.0)
        assert shown(monitor) == {}


async def test_stored_targets_that_cannot_be_read_are_set_aside(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """What this monitor knows is stored anew."""
    monitor = make("m1")
    async with monitor.running():
        await monitor.coordinator.set_target(said(clock, "copa", 0.999))
        stored = await store.load_targets()
        assert stored is not None
        await store.save_targets(b"nonsense", stored[0] + 1, stored[0])
        await clock.advance(2.0)
        stored = await store.load_targets()
        assert stored is not None
        assert b"copa" in stored[1]
        assert shown(monitor) == {"copa": 0.999}
