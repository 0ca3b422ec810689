"""Router reports: order, epochs, silence, rates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from services.common.checks import MAX_RATE_RPS
from services.common.errors import AlreadyExistsError, ResourceExhaustedError
from services.load_monitor.aggregator import Aggregator
from services.load_monitor.loads import CandidateOrder, RouterLoads
from services.load_monitor.model import MAX_REPORTS_BYTES, RouterReport
from tests.fakes.clock import FakeClock


def report(
    router_id: str = "r1", epoch: int = 1, sequence: int = 1, rate_rps: float = 0.0, count: int = 0
) -> RouterReport:
    """Returns a report with `count` requests under way at endpoint `e`."""
    loads = RouterLoads.by_name({("small", "e"): (count, 0, 0)} if count else {})
    return RouterReport(router_id, epoch, sequence, rate_rps, loads, b"")


@pytest.fixture
def aggregator(clock: FakeClock) -> Aggregator:
    """An aggregator for up to three routers, silent after 3 s."""
    found = Aggregator(clock=clock, silence_s=3.0, max_routers=3)
    found.follow(CandidateOrder([("small", "e")]))
    return found


def test_late_and_repeated_reports_change_nothing(aggregator: Aggregator) -> None:
    """Only a larger sequence number of the same epoch replaces a report."""
    assert aggregator.take(report(sequence=2, count=5))
    assert not aggregator.take(report(sequence=1, count=9))
    assert not aggregator.take(report(sequence=2, count=9))
    assert aggregator.in_flight_at("e") == 5
    assert aggregator.take(report(sequence=3, count=1))
    assert aggregator.in_flight_at("e") == 1


@pytest.mark.parametrize("epoch", [2, 1])
def test_restarted_router_begins_a_new_epoch(aggregator: Aggregator, epoch: int) -> None:
    """Once its stream has broken a name is free, whichever way the router's clock went."""
    old, new = object(), object()
    assert aggregator.take(report(epoch=3 - epoch, sequence=100, count=5), old)
    aggregator.stream_broke("r1", old)
    assert aggregator.take(report(epoch=epoch, sequence=1, count=0), new)
    aggregator.leave("r1", epoch=3 - epoch)
    assert [r.epoch for r in aggregator.reports] == [epoch]
    aggregator.leave("r1", epoch=epoch)
    assert aggregator.reports == ()


def test_a_process_restarted_behind_another_monitor_has_its_name(aggregator: Aggregator) -> None:
    """That monitor has seen the end of the first one; a third monitor has not."""
    assert aggregator.take(report(epoch=1, sequence=100), monitor_id="m1")
    assert not aggregator.take(report(epoch=2, sequence=1), monitor_id="m2")
    assert not aggregator.take(report(epoch=2, sequence=1))
    assert aggregator.take(report(epoch=2, sequence=1), monitor_id="m1")
    assert [r.epoch for r in aggregator.reports] == [2]


def test_a_process_that_moved_here_from_another_monitor_has_its_name(
    aggregator: Aggregator,
) -> None:
    """It is free once that monitor hands over the reports of others alone."""
    assert aggregator.take(report(epoch=1), monitor_id="m1")
    for monitor_id, router_ids in (("m1", {"r1"}), ("m2", set[str]())):
        aggregator.handed_over(monitor_id, router_ids)
        with pytest.raises(AlreadyExistsError):
            aggregator.take(report(epoch=2), object())
    aggregator.handed_over("m1", {"r2"})
    assert aggregator.take(report(epoch=2), object())


@pytest.mark.parametrize("epoch", [2**63 - 1, 1])
def test_a_second_process_of_the_same_name_is_refused(
    aggregator: Aggregator, clock: FakeClock, epoch: int
) -> None:
    """No epoch silences a router that reports; one that fell silent may be replaced."""
    assert aggregator.take(report(epoch=7, count=5), object())
    with pytest.raises(AlreadyExistsError) as caught:
        aggregator.take(report(epoch=epoch, sequence=1), object())
    assert caught.value.reason == "ROUTER_ID_ALREADY_EXISTS"
    assert not aggregator.take(report(epoch=epoch, sequence=1))
    assert aggregator.take(report(epoch=7, sequence=2, count=4), object())
    clock.move(3.5)
    assert aggregator.take(report(epoch=epoch, sequence=1), object())


def test_a_router_that_reconnects_keeps_its_name(aggregator: Aggregator) -> None:
    """Its old stream may end after the new one began."""
    old, new = object(), object()
    assert aggregator.take(report(sequence=1), old)
    assert aggregator.take(report(sequence=2), new)
    aggregator.stream_broke("r1", old)
    with pytest.raises(AlreadyExistsError):
        aggregator.take(report(epoch=9), object())


def test_rates_never_leave_the_numbers(aggregator: Aggregator, clock: FakeClock) -> None:
    """The largest rates that the door lets through have a finite sum."""
    for name in ("a", "b", "c"):
        aggregator.take(report(name, rate_rps=MAX_RATE_RPS))
        clock.move(1.0)
    aggregator.expire()
    assert aggregator.arrival_rate_short_rps == 3 * MAX_RATE_RPS
    assert aggregator.arrival_rate_long_rps <= 3 * MAX_RATE_RPS


def test_reports_have_room_by_construction(clock: FakeClock) -> None:
    """Large reports are refused before the state grows too large, small ones never are."""
    aggregator = Aggregator(clock=clock, silence_s=3.0, max_routers=100)
    large = RouterReport("", 1, 1, 0.0, RouterLoads.by_name({}), b"x" * 250_000)
    taken_count = 0
    with pytest.raises(ResourceExhaustedError) as caught:  # noqa: PT012 - the end of a loop
        for taken_count in range(99):
            aggregator.take(replace(large, router_id=f"r{taken_count}"))
    assert caught.value.reason == "REPORTS_TOO_LARGE"
    assert 30 < taken_count < 70
    assert aggregator.take(replace(large, router_id="small", encoded=b"x" * 20_000))
    assert sum(len(r.encoded) for r in aggregator.reports) <= MAX_REPORTS_BYTES
    clock.move(4.0)
    aggregator.expire()
    assert aggregator.take(replace(large, router_id="late"))


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


def test_reports_age_from_when_they_first_came_to_a_monitor(
    aggregator: Aggregator, clock: FakeClock
) -> None:
    """Another monitor says how long it had one; what a router says of itself does not count."""
    aggregator.take(replace(report("direct"), age_s=50.0), object())
    aggregator.take(replace(report("handed"), age_s=0.25))
    clock.move(0.5)
    assert [each.age_s for each in aggregator.reports] == [0.5, 0.75]
    picture = aggregator.loads()
    clock.move(1.0)
    aggregator.take(report("direct", sequence=2), object())
    assert {name: each.age_s for name, (each, _load) in picture.by_router.items()} == {
        "direct": 0.5,
        "handed": 0.75,
    }
    assert [each.age_s for each in aggregator.reports] == [0.0, 1.75]
