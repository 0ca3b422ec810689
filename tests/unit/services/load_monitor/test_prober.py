"""What probes find out, and how often they ask."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tests.fakes.clock import FakeClock
from tests.fakes.probe_client import FakeCounters, FakeProbeClient
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


@pytest.mark.parametrize(
    "counters",
    [
        FakeCounters(success_count=2**64 - 1),
        FakeCounters(fail_count=2**63),
        FakeCounters(success_count=-1),
        FakeCounters(queue_s=math.inf),
        FakeCounters(compute_s=math.nan),
    ],
)
async def test_impossible_statistics_mark_the_endpoint_and_nothing_else(
    make: Make, clock: FakeClock, counters: FakeCounters
) -> None:
    """States keep coming, name the reason, and the endpoint can be taken out."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(0.1)
        monitor.clients["e1"].counters = {"opt": counters}
        await clock.advance(1.0)
        (state,) = monitor.state.endpoints
        assert state.health == common_pb2.ENDPOINT_HEALTH_DOWN
        assert "statistics of opt say" in state.reason
        await monitor.coordinator.change(lambda t: t.drain("e1", 0.0))
        await clock.advance(2.0)
        assert not monitor.state.endpoints


async def test_counters_of_models_that_are_not_served_do_not_matter(
    make: Make, clock: FakeClock
) -> None:
    """A server may hold other models, and say of them what it likes."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(0.1)
        monitor.clients["e1"].counters = {"other": FakeCounters(success_count=2**64 - 1)}
        await clock.advance(1.0)
        (state,) = monitor.state.endpoints
        assert state.health == common_pb2.ENDPOINT_HEALTH_READY


@pytest.mark.parametrize("error", [ValueError("bytes"), UnicodeError("text"), KeyError("x")])
async def test_a_probe_that_fails_unexpectedly_marks_the_endpoint(
    make: Make, clock: FakeClock, error: Exception
) -> None:
    """Whatever the client library raises on a server's answer, the others are probed on."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(0.1)
        monitor.clients["e1"].error = error
        await clock.advance(1.0)
        (state,) = monitor.state.endpoints
        assert state.health == common_pb2.ENDPOINT_HEALTH_DOWN
        assert state.reason == f"cannot be probed: {type(error).__name__}"
        monitor.clients["e1"].error = None
        await clock.advance(2.0)
        assert monitor.state.endpoints[0].health == common_pb2.ENDPOINT_HEALTH_READY


async def test_a_kind_that_is_no_name_counts_as_unknown(make: Make, clock: FakeClock) -> None:
    """A model's own text does not go to every router."""
    monitor = make("m1")
    client = monitor.clients["e1"] = FakeProbeClient()
    client.kind = "x" * 100_000
    async with monitor.running():
        await clock.advance(0.1)
        assert [gauge.kind for gauge in monitor.state.endpoints[0].gauges] == ["", ""]
