"""Monitors of one test share a clock and a store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fakes.clock import FakeClock
from tests.fakes.state_store import FakeStateStore
from tests.unit.services.load_monitor.rig import Monitor


@pytest.fixture
def clock() -> FakeClock:
    """A clock moved by hand."""
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> FakeStateStore:
    """A store shared by the monitors of a test."""
    return FakeStateStore(clock)


@pytest.fixture
def make(clock: FakeClock, store: FakeStateStore) -> Callable[[str], Monitor]:
    """Makes monitors that share clock and store."""
    return lambda name: Monitor(name, clock, store)
