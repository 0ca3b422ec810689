"""How large each router's home is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.home import Share
from services.load_monitor.model import Picture
from services.load_monitor.shares import FLOOR, TAU_S, Shares
from tests.unit.services.load_monitor.rig import picture, report


def seen(at_s: float, **rates_rps: float) -> Picture:
    """Returns a picture of routers with these arrival rates."""
    reports = [
        replace(report(name), arrival_rate_rps=rate_rps) for name, rate_rps in rates_rps.items()
    ]
    return replace(picture(1, (), tuple(reports)), publish_wall_ns=round(at_s * 1e9))


def lengths(shares: dict[str, Share]) -> dict[str, float]:
    """Returns how long each stretch is."""
    return {name: share.end - share.start for name, share in shares.items()}


def test_stretches_follow_each_other_by_name_and_cover_everything() -> None:
    """All routers are told the same row."""
    known = Shares()
    known.of(seen(1.0, c=1.0, a=5.0, b=2.0))
    shares = known.of(seen(1.0 + TAU_S, c=1.0, a=5.0, b=2.0))
    assert list(shares) == ["a", "b", "c"]
    assert [share.start for share in shares.values()][1:] == [
        share.end for share in shares.values()
    ][:-1]
    assert shares["a"].start == 0.0
    assert shares["c"].end == pytest.approx(1.0)


def test_a_stretch_is_as_long_as_the_part_of_the_traffic() -> None:
    """But for the floor, so that one without traffic has a little."""
    shares = Shares()
    shares.of(seen(1.0, a=30.0, b=10.0, c=0.0))
    found = lengths(shares.of(seen(1.0 + 10 * TAU_S, a=30.0, b=10.0, c=0.0)))
    assert found["a"] > 2.5 * found["b"]
    assert found["c"] == pytest.approx(FLOOR / 3 / (1 + FLOOR), rel=0.01)


def test_without_any_traffic_all_are_equal() -> None:
    """As nothing is known."""
    assert lengths(Shares().of(seen(1.0, a=0.0, b=0.0))) == pytest.approx({"a": 0.5, "b": 0.5})


def test_shares_follow_the_traffic_slowly() -> None:
    """A burst at one router hardly moves them; lasting traffic does."""
    shares = Shares()
    shares.of(seen(1.0, a=10.0, b=10.0))
    burst = seen(1.0 + TAU_S / 100, a=100.0, b=0.0)
    assert lengths(shares.of(burst))["a"] == pytest.approx(0.52, abs=0.02)
    assert shares.of(burst) is shares.of(burst)
    assert lengths(shares.of(seen(1.0 + 5 * TAU_S, a=100.0, b=0.0)))["a"] > 0.95


def test_routers_come_and_go() -> None:
    """A new one counts as much as others do, until it is known; one that left counts no more."""
    shares = Shares()
    assert lengths(shares.of(seen(1.0, a=30.0, b=1.0))) == pytest.approx({"a": 0.5, "b": 0.5})
    found = lengths(shares.of(seen(1.0, b=10.0, c=99.0)))
    assert found == pytest.approx({"b": 0.5, "c": 0.5})


def test_a_clock_that_goes_back_changes_nothing_suddenly() -> None:
    """Another monitor's pictures, or a corrected clock."""
    shares = Shares()
    shares.of(seen(100.0, a=10.0, b=10.0))
    assert lengths(shares.of(seen(1.0, a=99.0, b=1.0)))["a"] == pytest.approx(0.5)
