"""Several monitors agree through Redis, and each works on without it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace

from services.load_monitor.convert import report_from_message
from services.load_monitor.coordination import LEASE_NAME, Role
from services.load_monitor.loads import RouterLoads
from services.load_monitor.model import RouterReport
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


async def test_a_restarted_router_is_heard_at_once_behind_whichever_monitor(
    make: Make, clock: FakeClock
) -> None:
    """The follower saw the end of the first process: the second may report there, or here."""
    leader, follower = make("m1"), make("m2")

    def process(epoch: int) -> RouterReport:
        return report_from_message(pb.RouterLoad(router_id="r2", epoch=epoch, sequence=1))

    def epochs() -> list[int]:
        assert leader.broadcast.latest is not None
        return [each.epoch for each in leader.broadcast.latest.routers]

    async with leader.running(), follower.running():
        await clock.advance(0.2)
        streams = [object(), object()]
        follower.board.take_report(process(5), streams[0])
        await clock.advance(0.5)
        follower.board.aggregator.stream_broke("r2", streams[0])
        follower.board.take_report(process(6), streams[1])
        await clock.advance(0.5)
        assert epochs() == [6]
        follower.board.aggregator.stream_broke("r2", streams[1])
        await clock.advance(0.5)
        leader.board.take_report(process(7), object())
        await clock.advance(0.5)
        assert epochs() == [7]


async def test_reports_age_on_their_way_through_monitors(make: Make, clock: FakeClock) -> None:
    """By the clocks of those that had them; what lies in the store meanwhile is not counted."""
    leader, follower = make("m1"), make("m2")
    async with leader.running(), follower.running():
        await clock.advance(0.2)
        follower.board.take_report(report("r2"), object())
        await clock.advance(2.0)
        ages = []
        for monitor in (leader, follower):
            assert monitor.broadcast.latest is not None
            (told,) = monitor.broadcast.latest.routers
            ages.append(told.age_s + monitor.broadcast.age_s)
        # Each hand-over waits in the store for a round at most.
        assert 1.8 <= ages[1] <= ages[0] <= 2.0


async def test_monitors_of_the_last_release_get_loads_by_name(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """A leader packs unless a follower knows no packed loads, and again once that one is gone."""

    async def stored_forms() -> set[bool]:
        payload = await store.load_system_state()
        assert payload is not None
        return {
            load.HasField("packed_loads") for load in pb.SystemState.FromString(payload).routers
        }

    leader = make("m1")
    busy = {(tier, "e1"): (10**6, 10**9, 10**9) for tier in ("small", "large")}
    async with leader.running():
        leader.board.take_report(replace(report("r1"), loads=RouterLoads.by_name(busy)))
        await clock.advance(0.5)
        assert await stored_forms() == {True}
        theirs = pb.SystemState(routers=[pb.RouterLoad(router_id="r2", epoch=1, sequence=1)])
        await store.put_peer_reports("old", theirs.SerializeToString())
        await clock.advance(0.5)
        assert await stored_forms() == {False}
        await clock.advance(2.0)
        leader.board.take_report(replace(report("r1", 2), loads=RouterLoads.by_name(busy)))
        await clock.advance(3.0)
        leader.board.take_report(replace(report("r1", 3), loads=RouterLoads.by_name(busy)))
        await clock.advance(0.5)
        assert await stored_forms() == {True}


async def test_reports_go_to_a_leader_of_the_last_release_by_name(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """A follower packs what it hands over once the leader's states say that it reads that."""
    await store.acquire_lease(LEASE_NAME, "old", 60.0)
    follower = make("m2")
    busy = {(tier, "e1"): (10**6, 10**9, 10**9) for tier in ("small", "large")}
    async with follower.running():
        for packs in (False, True):
            state = pb.SystemState(version=2**50 + packs, topology_version=1)
            if packs:
                state.candidates.add(tier="small", endpoint="e1")
            await store.publish_system_state(state.SerializeToString(), state.version)
            sequence = 1 + packs
            loads = RouterLoads.by_name(busy)
            follower.board.take_report(replace(report("r1", sequence), loads=loads))
            await clock.advance(0.5)
            (payload,) = await store.take_peer_reports()
            (handed,) = pb.SystemState.FromString(payload).routers
            assert handed.HasField("packed_loads") is packs


async def test_a_monitor_without_redis_writes_no_state_for_others(
    clock: FakeClock, store: SwitchableStore
) -> None:
    """Nobody would read it; its watchers are served all the same."""
    monitor = Monitor("m1", clock, store, is_alone=True)
    async with monitor.running():
        await clock.advance(0.5)
        assert monitor.state.version > 0
        assert await store.load_system_state() is None


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


async def test_a_follower_whose_numbers_are_ahead_follows_all_the_same(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """One that started later counts from a later time, and served its own while Redis was away."""
    leader = make("m1")
    clock.move(1_000.0)
    follower = make("m2")
    async with leader.running(), follower.running():
        await clock.advance(1.0)
        assert (role_of(leader), role_of(follower)) == (Role.LEADER, Role.FOLLOWER)
        store.is_down = True
        await clock.advance(4.0)
        assert role_of(leader) is role_of(follower) is Role.STANDALONE
        last = follower.state.version
        assert last > leader.state.version + 100_000
        store.is_down = False
        assert await store.acquire_lease(LEASE_NAME, "m1", 60.0)
        waiting = asyncio.create_task(follower.broadcast.after(last))
        leader.board.take_report(report("r1"))
        await clock.advance(2.5)
        assert (role_of(leader), role_of(follower)) == (Role.LEADER, Role.FOLLOWER)
        assert (await waiting).version > last
        assert follower.state.monitor_id == "m1"
        assert [each.router_id for each in follower.state.routers] == ["r1"]
        version = follower.state.version
        await clock.advance(2.0)
        assert 1 <= follower.state.version - version <= 25


async def test_a_follower_that_began_without_redis_follows(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """One call that fails as it starts is enough for a first state of its own."""
    leader = make("m1")
    clock.move(1_000.0)
    async with leader.running():
        await clock.advance(1.0)
        follower = make("m2")
        store.is_down = True
        async with follower.running():
            await clock.advance(0.2)
            assert follower.state.monitor_id == "m2"
            store.is_down = False
            assert await store.acquire_lease(LEASE_NAME, "m1", 60.0)
            await clock.advance(2.5)
            assert role_of(follower) is Role.FOLLOWER
            assert follower.state.monitor_id == "m1"


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
