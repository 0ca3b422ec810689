"""How old the others' reports are together, and how fast requests come to them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.load_monitor.model import LONGEST_AGE_S, Picture, RouterReport
from services.load_monitor.others import Others, OthersSums
from tests.unit.services.load_monitor.rig import endpoint, picture, report
from tests.unit.services.load_monitor.test_router_states import view


def told(name: str, age_s: float, in_flight: int = 0, long_rps: float | None = 0.0) -> RouterReport:
    """Returns a report of an age."""
    known = report(name, in_flight_count=in_flight)
    return replace(known, age_s=age_s, arrival_rate_long_rps=long_rps)


def shown(*reports: RouterReport) -> Picture:
    """Returns a picture of one endpoint with these reports."""
    return picture(1, (view(endpoint("e1")),), reports)


def test_reports_count_by_what_is_in_flight() -> None:
    """What is gone of the sum of the loads is gone of each as far as its report is old."""
    sums, seen = OthersSums(), shown(told("a", 0.1, 9), told("b", 0.5, 29), told("c", 9.0, 400))
    assert sums.of(seen, 0.0, "c").age_s == pytest.approx((10 * 0.1 + 30 * 0.5) / 40)
    assert sums.of(seen, 0.25, "c").age_s == pytest.approx(0.4 + 0.25)
    assert sums.of(shown(told("a", 0.1), told("b", 0.3)), 0.0, None).age_s == pytest.approx(0.2)


def test_without_another_router_there_is_no_age() -> None:
    """Nor is anything arriving elsewhere."""
    assert OthersSums().of(shown(told("a", 0.5, 3, 7.0)), 1.0, "a") == Others(None, 0.0, 0.0)
    assert OthersSums().of(shown(), 1.0, None) == Others(None, 0.0, 0.0)


def test_long_rates_are_added_if_all_others_tell_theirs() -> None:
    """A sum without some of them would make a router take itself for more than it is."""
    sums, seen = OthersSums(), shown(told("a", 0.0, 0, 30.0), told("b", 0.0, 0, 12.5))
    assert sums.of(seen, 0.0, "a").rate_long_rps == 12.5
    assert sums.of(seen, 0.0, None).rate_long_rps == 42.5
    seen = shown(told("a", 0.0, 0, 30.0), told("old", 0.0, 0, None), told("b", 0.0, 0, 5.0))
    assert sums.of(seen, 0.0, "a").rate_long_rps is None
    assert sums.of(seen, 0.0, "old").rate_long_rps == 35.0


def test_nothing_of_the_own_rate_is_left_in_that_of_idle_others() -> None:
    """A router that is alone beside idle ones must not take them for busy, however little."""
    sums = OthersSums()
    for rate_rps in (0.1234567, 1 / 3, 7e5 / 11):
        own = replace(told("a", 0.0), arrival_rate_rps=rate_rps)
        assert sums.of(shown(own, told("b", 0.0)), 0.0, "a").rate_rps == 0.0
        assert sums.of(shown(own, told("b", 0.0)), 0.0, "b").rate_rps == rate_rps


def test_an_age_has_its_limit() -> None:
    """A monitor may serve a state for as long as its store is away."""
    assert OthersSums().of(shown(told("a", 1.0)), 1e9, None).age_s == LONGEST_AGE_S
