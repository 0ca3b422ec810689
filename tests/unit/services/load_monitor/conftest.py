"""Monitors of one test share a clock and a store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.common.state.shared_state import MemorySharedState
from tests.fakes.clock import FakeClock
from tests.fakes.state_store import SwitchableStore
from tests.unit.services.load_monitor.rig import Monitor


@pytest.fixture
def clock() -> FakeClock:
    """A clock moved by hand."""
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> SwitchableStore:
    """A store shared by the monitors of a test."""
    return SwitchableStore(MemorySharedState(clock))


@pytest.fixture
def make(clock: FakeClock, store: SwitchableStore) -> Callable[[str], Monitor]:
    """Makes monitors that share clock and store."""
    return lambda name: Monitor(name, clock, store)
