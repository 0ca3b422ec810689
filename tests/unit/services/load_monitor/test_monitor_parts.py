"""Prober, publisher and coordination together, on a fake clock and a fake store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from services.common.log import get_logger
from services.load_monitor.aggregator import Aggregator
from services.load_monitor.board import Board
from services.load_monitor.broadcast import Broadcast
from services.load_monitor.convert import report_from_message
from services.load_monitor.coordination import Coordinator, Role, Versions
from services.load_monitor.health import HealthRules
from services.load_monitor.model import EndpointDefinition, Publication, RouterReport, ServedTier
from services.load_monitor.prober import Prober, ProbeTimes
from services.load_monitor.publisher import Publisher
from services.load_monitor.topology import Topology
from tests.fakes.clock import FakeClock, settle
from tests.fakes.probe_client import FakeCounters, FakeProbeClient
from tests.fakes.state_store import FakeStateStore
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as pb

LOG = get_logger("test")


def endpoint(name: str) -> EndpointDefinition:
    """Returns a definition whose address is its name."""
    tiers = (ServedTier("small", "small"), ServedTier("large", "opt"))
    return EndpointDefinition(name, f"{name}:1", name, tiers)


def report(router_id: str, sequence: int = 1, in_flight_count: int = 0) -> RouterReport:
    """Returns a report as it comes over the network."""
    candidate = common_pb2.Candidate(tier="small", endpoint="e1")
    load = pb.CandidateLoad(candidate=candidate, in_flight_count=in_flight_count)
    return report_from_message(
        pb.RouterLoad(router_id=router_id, epoch=1, sequence=sequence, loads=[load])
    )


class Monitor:
    """One monitor process without its server."""

    def __init__(self, name: str, clock: FakeClock, store: FakeStateStore) -> None:
        self.clients: dict[str, FakeProbeClient] = {}
        self.board = Board(
            monitor_id=name,
            clock=clock,
            rules=HealthRules(2, 2, 5.0, 0.1),
            aggregator=Aggregator(clock=clock, silence_s=3.0, max_routers=10),
            topology=Topology({"e1": endpoint("e1")}).renumbered(),
        )
        self.broadcast = Broadcast()
        self.versions = Versions(clock)
        self.coordinator = Coordinator(
            monitor_id=name,
            store=store,
            board=self.board,
            broadcast=self.broadcast,
            versions=self.versions,
            clock=clock,
            log=LOG,
            interval_s=0.08,
            lease_ttl_s=2.0,
        )
        self.publisher = Publisher(
            board=self.board,
            broadcast=self.broadcast,
            coordinator=self.coordinator,
            versions=self.versions,
            clock=clock,
            log=LOG,
            interval_s=0.08,
            idle_interval_s=1.0,
        )
        self.prober = Prober(
            board=self.board,
            connect=self._connect,
            times=ProbeTimes(gauge_interval_s=0.2, ready_interval_s=1.0, timeout_s=1.0),
            clock=clock,
            log=LOG,
            is_publishing=lambda: self.coordinator.is_publishing,
        )

    def _connect(self, address: str) -> FakeProbeClient:
        return self.clients.setdefault(address.partition(":")[0], FakeProbeClient())

    @property
    def state(self) -> pb.SystemState:
        """The newest state it serves."""
        assert self.broadcast.latest is not None
        return pb.SystemState.FromString(self.broadcast.latest.payload)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs its tasks."""

        async def nothing() -> None:
            return None

        await self.coordinator.round()
        tasks = [
            asyncio.create_task(work)
            for work in (self.prober.run(), self.publisher.run(), self.coordinator.run(nothing))
        ]
        try:
            await settle()
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


Make = Callable[[str], Monitor]


def role_of(monitor: Monitor) -> Role:
    """Returns its present role (a call, so that type checkers do not hold it for constant)."""
    return monitor.coordinator.role


@pytest.fixture
def clock() -> FakeClock:
    """A clock moved by hand."""
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> FakeStateStore:
    """A store shared by the monitors of a test."""
    return FakeStateStore(clock)


@pytest.fixture
def make(clock: FakeClock, store: FakeStateStore) -> Make:
    """Makes monitors that share clock and store."""
    return lambda name: Monitor(name, clock, store)


async def test_changes_are_published_at_ten_hertz(make: Make, clock: FakeClock) -> None:
    """A report each 50 ms gives at least ten states a second, each with the last report."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(0.1)
        first = monitor.state.version
        for sequence in range(1, 21):
            monitor.board.take_report(report("r1", sequence))
            await clock.advance(0.05)
        assert monitor.state.version - first >= 10
        assert [r.sequence for r in monitor.state.routers] in ([19], [20])


async def test_idle_monitor_publishes_once_a_second(make: Make, clock: FakeClock) -> None:
    """Nothing changes, yet watchers see that the monitor lives."""
    monitor = make("m1")
    await monitor.coordinator.round()
    clock.move(3.0)
    assert monitor.publisher.tick()
    published = 0
    for _ in range(30):
        clock.move(0.1)
        published += monitor.publisher.tick()
    assert published in (2, 3)


async def test_first_state_waits_for_the_first_probes_but_not_for_ever(
    make: Make, clock: FakeClock
) -> None:
    """A state that knows nothing of any endpoint is only published when probes take too long."""
    monitor = make("m1")
    await monitor.coordinator.round()
    assert not monitor.publisher.tick()
    clock.move(2.0)
    assert monitor.publisher.tick()


async def test_probes_find_a_crash_and_a_recovery(make: Make, clock: FakeClock) -> None:
    """Down within half a second of refused calls, back with a ramp, kind and counters read."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(0.1)
        client = monitor.clients["e1"]
        (state,) = monitor.state.endpoints
        assert state.health == common_pb2.ENDPOINT_HEALTH_READY
        assert [gauge.kind for gauge in state.gauges] == ["paced", "paced"]
        client.live = False
        await clock.advance(0.5)
        (state,) = monitor.state.endpoints
        assert state.health == common_pb2.ENDPOINT_HEALTH_DOWN
        assert "connection refused" in state.reason
        client.live = True
        await clock.advance(2.0)
        (state,) = monitor.state.endpoints
        assert state.health == common_pb2.ENDPOINT_HEALTH_READY
        assert 0.0 < state.ramp_weight < 1.0
        client.counters = {"opt": FakeCounters(5, 1, 0.0, 1.0)}
        await clock.advance(6.0)
        (state,) = monitor.state.endpoints
        assert state.ramp_weight == 1.0
        assert (state.gauges[1].success_count, state.gauges[1].failure_count) == (5, 1)


async def test_gauges_are_read_often_readiness_each_second(make: Make, clock: FakeClock) -> None:
    """Ten seconds cost about 50 statistics calls and 10 readiness checks per tier."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(10.0)
        client = monitor.clients["e1"]
        assert 45 <= client.statistics_count <= 55
        assert 18 <= client.ready_count <= 24
        assert client.config_count == 2


async def test_endpoints_join_drain_and_leave(make: Make, clock: FakeClock) -> None:
    """A new endpoint is probed, a draining one keeps its place until it is empty."""
    monitor = make("m1")
    async with monitor.running():
        await monitor.coordinator.change(lambda t: t.add(endpoint("e2"), max_endpoints=9))
        await clock.advance(0.3)
        assert [e.endpoint.endpoint for e in monitor.state.endpoints] == ["e1", "e2"]
        assert monitor.state.endpoints[1].health == common_pb2.ENDPOINT_HEALTH_READY
        until_ns = clock.wall_ns() + 10_000_000_000
        await monitor.coordinator.change(lambda t: t.drain("e1", until_ns))
        for sequence in range(1, 5):
            monitor.board.take_report(report("r1", sequence, in_flight_count=1))
            await clock.advance(1.0)
        assert monitor.state.endpoints[0].health == common_pb2.ENDPOINT_HEALTH_DRAINING
        version = monitor.state.topology_version
        monitor.board.take_report(report("r1", 5))
        await clock.advance(1.0)
        assert [e.endpoint.endpoint for e in monitor.state.endpoints] == ["e2"]
        assert monitor.state.topology_version > version
        assert monitor.clients["e1"].closed


async def test_drain_that_never_empties_ends_with_its_time(make: Make, clock: FakeClock) -> None:
    """A stuck request cannot keep an endpoint for ever."""
    monitor = make("m1")
    async with monitor.running():
        until_ns = clock.wall_ns() + 2_000_000_000
        await monitor.coordinator.change(lambda t: t.drain("e1", until_ns))
        for sequence in range(1, 6):
            monitor.board.take_report(report("r1", sequence, in_flight_count=1))
            await clock.advance(0.6)
        assert not monitor.state.endpoints


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
    make: Make, clock: FakeClock, store: FakeStateStore
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
    make: Make, clock: FakeClock, store: FakeStateStore
) -> None:
    """Losing Redis keeps states and changes coming; what changed meanwhile is stored later."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(0.5)
        store.fail = True
        await clock.advance(1.0)
        assert role_of(monitor) is Role.STANDALONE
        assert monitor.coordinator.store_available is False
        before = monitor.state.version
        added = await monitor.coordinator.change(lambda t: t.add(endpoint("e2"), max_endpoints=9))
        await clock.advance(1.0)
        assert monitor.state.version > before
        assert monitor.state.topology_version == added
        assert len(monitor.state.endpoints) == 2
        store.fail = False
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


async def test_starts_without_redis(make: Make, clock: FakeClock, store: FakeStateStore) -> None:
    """A monitor that never saw Redis publishes with numbers from its wall clock."""
    store.fail = True
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
    make: Make, clock: FakeClock, store: FakeStateStore
) -> None:
    """What clients saw while Redis was away stays below what they see afterwards."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(1.0)
        store.fail = True
        numbers = [
            await monitor.coordinator.change(
                lambda t, name=name: t.add(endpoint(name), max_endpoints=9)  # type: ignore[misc]
            )
            for name in ("e2", "e3")
        ]
        await monitor.coordinator.change(lambda t: t.drop("e2"))
        numbers.append(monitor.board.topology.version)
        store.fail = False
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
    make: Make, clock: FakeClock, store: FakeStateStore
) -> None:
    """Garbage under our keys is logged, not obeyed."""
    await store.save_topology(b"garbage", 7)
    await store.publish_system_state(b"\xff\xff", 1)
    await store.put_peer_reports("x", b"\xff\xff")
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(1.0)
        assert [e.endpoint.endpoint for e in monitor.state.endpoints] == ["e1"]


async def test_broadcast_skips_but_never_goes_back() -> None:
    """A slow watcher gets the newest only; an older publication is refused; closing ends waits."""
    broadcast = Broadcast()
    waiting = asyncio.create_task(broadcast.after(0))
    await settle()
    for version in (1, 2, 3):
        assert broadcast.offer(Publication(version, b"", 0))
    assert not broadcast.offer(Publication(2, b"", 0))
    found = await waiting
    assert found is not None
    assert found.version == 3
    late = asyncio.create_task(broadcast.after(3))
    await settle()
    broadcast.close()
    assert await late is None
