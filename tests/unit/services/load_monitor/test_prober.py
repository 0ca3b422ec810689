"""What probes find out, and how often they ask."""

from __future__ import annotations

from collections.abc import Callable

from tests.fakes.clock import FakeClock
from tests.fakes.probe_client import FakeCounters
from tests.unit.services.load_monitor.rig import Monitor
from tiercel.common.v1 import common_pb2

Make = Callable[[str], Monitor]


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
