"""Numbers of publications grow, whatever clients and other monitors have seen."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidArgumentError
from services.load_monitor.versions import Versions
from tests.fakes.clock import FakeClock


def test_a_number_that_a_client_has_seen_is_passed(clock: FakeClock) -> None:
    """A client that comes from a monitor whose clock was ahead gets the next state all the same."""
    versions = Versions(clock)
    seen = versions.accept(versions.next() + 50_000)
    assert versions.next() == seen + 1


@pytest.mark.parametrize("ahead", [60_001, 2**62])
def test_a_number_nobody_can_have_published_is_refused(clock: FakeClock, ahead: int) -> None:
    """One wrong client must not use the numbers up."""
    versions = Versions(clock)
    with pytest.raises(InvalidArgumentError, match="after_version"):
        versions.accept(clock.wall_ns() // 1_000_000 + ahead)


def test_a_number_above_the_clock_that_was_published_is_accepted(clock: FakeClock) -> None:
    """Numbers of a leader whose clock was far ahead are taken over, and so are its clients."""
    versions = Versions(clock)
    versions.observe(clock.wall_ns() // 1_000_000 + 1_000_000)
    published = versions.next()
    assert versions.accept(published) == published
