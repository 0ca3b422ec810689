"""Router reports: order, epochs, silence, rates."""

from __future__ import annotations

import math

import pytest

from services.common.errors import ResourceExhaustedError
from services.load_monitor.aggregator import Aggregator
from services.load_monitor.model import RouterReport
from tests.fakes.clock import FakeClock


def report(
    router_id: str = "r1", epoch: int = 1, sequence: int = 1, rate_rps: float = 0.0, count: int = 0
) -> RouterReport:
    """Returns a report with `count` requests under way at endpoint `e`."""
    in_flight = (("small", "e", count),) if count else ()
    return RouterReport(router_id, epoch, sequence, rate_rps, in_flight, b"")


@pytest.fixture
def aggregator(clock: FakeClock) -> Aggregator:
    """An aggregator for up to three routers, silent after 3 s."""
    return Aggregator(clock=clock, silence_s=3.0, max_routers=3)


def test_late_and_repeated_reports_change_nothing(aggregator: Aggregator) -> None:
    """Only a larger sequence number of the same epoch replaces a report."""
    assert aggregator.take(report(sequence=2, count=5))
    assert not aggregator.take(report(sequence=1, count=9))
    assert not aggregator.take(report(sequence=2, count=9))
    assert aggregator.in_flight_at("e") == 5
    assert aggregator.take(report(sequence=3, count=1))
    assert aggregator.in_flight_at("e") == 1


def test_restarted_router_begins_a_new_epoch(aggregator: Aggregator) -> None:
    """A larger epoch starts its sequence anew; what the old process still sends is ignored."""
    assert aggregator.take(report(epoch=1, sequence=100, count=5))
    assert aggregator.take(report(epoch=2, sequence=1, count=0))
    assert not aggregator.take(report(epoch=1, sequence=101, count=5))
    aggregator.leave("r1", epoch=1)
    assert [r.epoch for r in aggregator.reports] == [2]
    aggregator.leave("r1", epoch=2)
    assert aggregator.reports == ()


def test_silent_router_is_forgotten_with_its_load(aggregator: Aggregator, clock: FakeClock) -> None:
    """After 3 s without a new report nothing of a router is left; a repeated one does not count."""
    aggregator.take(report("r1", count=4))
    aggregator.take(report("r2", count=1))
    clock.move(2.0)
    aggregator.take(report("r2", sequence=2, count=1))
    aggregator.take(report("r1", sequence=1, count=4))
    clock.move(1.5)
    assert aggregator.expire() == ["r1"]
    assert aggregator.in_flight_at("e") == 1


def test_too_many_routers_are_refused(aggregator: Aggregator) -> None:
    """The fourth router is refused; the known ones may go on."""
    for name in ("a", "b", "c"):
        aggregator.take(report(name))
    with pytest.raises(ResourceExhaustedError, match="limit 3 routers"):
        aggregator.take(report("d"))
    assert aggregator.take(report("a", sequence=2))


def test_rates_at_two_time_scales(aggregator: Aggregator, clock: FakeClock) -> None:
    """The short rate is the routers' sum; the long one follows it over 10 s."""
    aggregator.take(report("a", rate_rps=10.0))
    assert aggregator.arrival_rate_long_rps == 10.0
    aggregator.take(report("b", rate_rps=20.0))
    assert aggregator.arrival_rate_short_rps == 30.0
    for step in range(1, 101):
        clock.move(0.1)
        aggregator.take(report("a", sequence=1 + step, rate_rps=10.0))
        aggregator.take(report("b", sequence=1 + step, rate_rps=20.0))
    expected = 30.0 - 20.0 * math.exp(-1.0)
    assert aggregator.arrival_rate_long_rps == pytest.approx(expected)


def test_traffic_that_moves_between_routers_keeps_the_long_rate(
    aggregator: Aggregator, clock: FakeClock
) -> None:
    """A router that leaves does not take the history of the mesh with it."""
    aggregator.take(report("a", rate_rps=30.0))
    aggregator.take(report("b", rate_rps=0.0))
    clock.move(0.1)
    aggregator.leave("a", epoch=1)
    aggregator.take(report("b", sequence=2, rate_rps=30.0))
    clock.move(1.0)
    aggregator.expire()
    assert aggregator.arrival_rate_long_rps == pytest.approx(30.0)
