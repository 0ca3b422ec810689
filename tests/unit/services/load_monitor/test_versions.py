"""Numbers of publications grow, whatever other monitors have published."""

from __future__ import annotations

from services.load_monitor.versions import Versions
from tests.fakes.clock import FakeClock


def test_numbers_begin_at_the_clock_and_grow(clock: FakeClock) -> None:
    """A monitor that starts later mostly goes on above the one before it."""
    versions = Versions(clock)
    first = versions.next()
    assert first == clock.wall_ns() // 1_000_000 + 1
    assert versions.next() == first + 1


def test_numbers_go_on_above_what_was_published(clock: FakeClock) -> None:
    """Numbers of a leader whose clock was far ahead are taken over; lower ones change nothing."""
    versions = Versions(clock)
    ahead = clock.wall_ns() // 1_000_000 + 1_000_000
    versions.observe(ahead)
    versions.observe(1)
    assert versions.next() == ahead + 1
