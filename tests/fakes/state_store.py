"""A state store in memory with a switch that makes it fail."""

from __future__ import annotations

from services.common.clock import Clock
from services.common.state.memory_store import MemoryStateStore
from services.common.state.store import StateUnavailableError


class FakeStateStore(MemoryStateStore):
    """A store in memory; `fail = True` makes every call raise StateUnavailableError."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.fail = False

    def _check(self) -> None:
        if self.fail:
            raise StateUnavailableError("switched off by the test")
