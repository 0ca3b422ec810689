"""Endpoints join, drain and leave the board."""

from __future__ import annotations

from collections.abc import Callable

from router.quality import Rating
from tests.fakes.clock import FakeClock
from tests.fakes.state_store import SwitchableStore
from tests.unit.services.load_monitor.rig import Monitor, endpoint, report
from tests.unit.services.load_monitor.test_ratings import told
from tiercel.common.v1 import common_pb2

Make = Callable[[str], Monitor]


async def test_endpoints_join_drain_and_leave(make: Make, clock: FakeClock) -> None:
    """A new endpoint is probed, a draining one keeps its place until it is empty."""
    monitor = make("m1")
    async with monitor.running():
        await monitor.coordinator.change(lambda t: t.add(endpoint("e2"), max_endpoints=9))
        await clock.advance(0.3)
        assert [e.endpoint.endpoint for e in monitor.state.endpoints] == ["e1", "e2"]
        assert monitor.state.endpoints[1].health == common_pb2.ENDPOINT_HEALTH_READY
        await monitor.coordinator.change(lambda t: t.drain("e1", 10.0))
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
        await monitor.coordinator.change(lambda t: t.drain("e1", 2.0))
        for sequence in range(1, 6):
            monitor.board.take_report(report("r1", sequence, in_flight_count=1))
            await clock.advance(0.6)
        assert not monitor.state.endpoints


def test_what_was_told_here_is_added_to_what_another_monitor_kept(clock: FakeClock) -> None:
    """At once, not when routers tell it again: one of them may have left."""
    board = Monitor("m1", clock, SwitchableStore(None)).board
    board.take_report(told("r1", {("copa", "small"): Rating(3, 0.5, 0.3)}), "stream")
    kept = {("copa", "small"): Rating(5, 0.5, 0.3)}
    board.use_ratings(kept, {("r1", 1): {("copa", "small"): Rating(1, 0.5, 0.3)}})
    assert board.picture(1).ratings["copa", "small"].answers == 7
