"""Several monitors agree through Redis, and each works on without it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from services.load_monitor.coordination import Role
from services.load_monitor.topology import Topology
from tests.fakes.clock import FakeClock
from tests.fakes.state_store import SwitchableStore
from tests.unit.services.load_monitor.rig import Monitor, endpoint, report
from tiercel.load_monitor.v1 import system_state_pb2 as pb

Make = Callable[[str], Monitor]


def role_of(monitor: Monitor) -> Role:
    """Returns its present role (a call, so that type checkers do not hold it for constant)."""
    return monitor.coordinator.role


async def test_one_monitor_leads_and_the_other_serves_its_states(
    make: Make, clock: FakeClock
) -> None:
    """The follower's watchers see the leader's state, with the reports the follower received."""
    leader, follower = make("m1"), make("m2")
    async with leader.running(), follower.running():
        await clock.advance(0.2)
        assert (leader.coordinator.role, follower.coordinator.role) == (Role.LEADER, Role.FOLLOWER)
        leader.board.take_report(report("r1"))
        follower.board.take_report(report("r2"))
        await clock.advance(0.5)
        assert [r.router_id for r in follower.state.routers] == ["r1", "r2"]
        assert follower.state.monitor_id == "m1"
        assert leader.state.version - follower.state.version <= 3


async def test_follower_takes_over_with_larger_numbers(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """After the leader died the other publishes, within the lease plus a moment."""
    leader, follower = make("m1"), make("m2")
    # The dead leader's clock was far ahead: numbers must grow all the same.
    leader.versions.observe(leader.versions.next() + 50_000)
    async with contextlib.AsyncExitStack() as stack:
        async with leader.running():
            await stack.enter_async_context(follower.running())
            await clock.advance(1.0)
            assert follower.coordinator.role is Role.FOLLOWER
        last = leader.state.version
        await clock.advance(1.0)
        assert follower.coordinator.role is Role.FOLLOWER
        await clock.advance(2.0)
        assert follower.state.monitor_id == "m2"
        assert follower.state.version > last
        payload = await store.load_system_state()
        assert payload is not None
        assert pb.SystemState.FromString(payload).monitor_id == "m2"


async def test_leader_that_leaves_gives_the_lease_back(make: Make, clock: FakeClock) -> None:
    """After an orderly stop the other leads within half a second, not after the lease."""
    leader, follower = make("m1"), make("m2")
    async with contextlib.AsyncExitStack() as stack:
        async with leader.running():
            await stack.enter_async_context(follower.running())
            await clock.advance(1.0)
        await leader.coordinator.close()
        await clock.advance(0.7)
        assert follower.coordinator.role is Role.LEADER


async def test_works_on_without_redis_and_comes_back(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """Losing Redis keeps states and changes coming; what changed meanwhile is stored later."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(0.5)
        store.is_down = True
        await clock.advance(1.0)
        assert role_of(monitor) is Role.STANDALONE
        assert monitor.coordinator.store_available is False
        before = monitor.state.version
        added = await monitor.coordinator.change(lambda t: t.add(endpoint("e2"), max_endpoints=9))
        await clock.advance(1.0)
        assert monitor.state.version > before
        assert monitor.state.topology_version == added
        assert len(monitor.state.endpoints) == 2
        store.is_down = False
        await clock.advance(1.5)
        assert role_of(monitor) is Role.LEADER
        payload = await store.load_system_state()
        assert payload is not None
        assert len(pb.SystemState.FromString(payload).endpoints) == 2
    restarted = make("m3")
    clock.move(10.0)
    async with restarted.running():
        await clock.advance(1.0)
        assert [e.endpoint.endpoint for e in restarted.state.endpoints] == ["e1", "e2"]


async def test_starts_without_redis(make: Make, clock: FakeClock, store: SwitchableStore) -> None:
    """A monitor that never saw Redis publishes with numbers from its wall clock."""
    store.is_down = True
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(0.5)
        assert monitor.coordinator.role is Role.STANDALONE
        assert monitor.state.version >= 1_700_000_000_000


async def test_two_monitors_change_the_list_at_once(make: Make, clock: FakeClock) -> None:
    """Both additions survive."""
    one, two = make("m1"), make("m2")
    async with one.running(), two.running():
        await asyncio.gather(
            one.coordinator.change(lambda t: t.add(endpoint("e2"), max_endpoints=9)),
            two.coordinator.change(lambda t: t.add(endpoint("e3"), max_endpoints=9)),
        )
        await clock.advance(1.0)
        names = [e.endpoint.endpoint for e in two.state.endpoints]
        assert names == ["e1", "e2", "e3"]
        assert one.board.topology.version == two.board.topology.version


async def test_numbers_of_the_list_never_fall_when_redis_returns(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """What clients saw while Redis was away stays below what they see afterwards."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(1.0)
        store.is_down = True
        numbers = [
            await monitor.coordinator.change(
                lambda t, name=name: t.add(endpoint(name), max_endpoints=9)  # type: ignore[misc]
            )
            for name in ("e2", "e3")
        ]
        await monitor.coordinator.change(lambda t: t.drop("e2"))
        numbers.append(monitor.board.topology.version)
        store.is_down = False
        await clock.advance(2.0)
        numbers.append(monitor.board.topology.version)
        assert numbers == sorted(numbers)
        assert len(set(numbers[:3])) == 3
        stored = await store.load_topology()
        assert stored is not None
        assert stored[0] == numbers[-1]
        assert list(monitor.board.topology.endpoints) == ["e1", "e3"]


async def test_monitors_with_different_settings_do_not_overrule_each_other(
    make: Make, clock: FakeClock
) -> None:
    """During a rolling change of the settings the list is renumbered once per new leader."""
    old, new = make("m1"), make("m2")
    configured = {"e1": endpoint("e1"), "e9": endpoint("e9")}
    new.board.use_topology(Topology(configured).renumbered())
    async with contextlib.AsyncExitStack() as stack:
        async with old.running():
            await stack.enter_async_context(new.running())
            await clock.advance(1.0)
            before = old.board.topology.version
            await clock.advance(5.0)
            assert old.board.topology.version == before
            assert [e.endpoint.endpoint for e in new.state.endpoints] == ["e1"]
        await clock.advance(4.0)
        assert [e.endpoint.endpoint for e in new.state.endpoints] == ["e1", "e9"]
        after = new.state.topology_version
        assert after > before
        await clock.advance(5.0)
        assert new.state.topology_version == after


async def test_damaged_entries_in_the_store_are_left_aside(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """Garbage under our keys is logged, not obeyed."""
    await store.save_topology(b"garbage", 7, 0)
    await store.publish_system_state(b"\xff\xff", 1)
    await store.put_peer_reports("x", b"\xff\xff")
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(1.0)
        assert [e.endpoint.endpoint for e in monitor.state.endpoints] == ["e1"]
