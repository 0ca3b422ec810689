"""What the exchange of states costs, of what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from services.bench.state import STATES_PER_S, _round


class Counted:
    """A client that sees one state come while it is looked at."""

    state_bytes = 100

    def __init__(self) -> None:
        """Has seen none."""
        self._looks = 0

    @property
    def state_count(self) -> int:
        """States so far."""
        self._looks += 1
        return self._looks


class Worked:
    """A server that uses so many CPU seconds from one look to the next."""

    def __init__(self, used_s: float) -> None:
        """Has used none."""
        self._used_s = used_s
        self._total_s = 0.0

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        self._total_s += self._used_s
        return self._total_s

    def memory_mb(self) -> float:
        """Some."""
        return 50.0


async def test_a_monitor_that_publishes_fewer_states_is_not_cheaper() -> None:
    """One state instead of many: its cost is that of all there should have been."""
    clients: Any = [Counted()]
    monitor: Any = Worked(1.0)
    routers: Any = (Worked(0.5), Worked(0.5))
    found = await _round(clients, monitor, routers, 0.2)
    assert found.states_per_s < STATES_PER_S
    # A second of CPU time for one state: with as many as there should be, 12.5 of them.
    assert found.monitor_cores == pytest.approx(STATES_PER_S)
    assert found.router_cores == found.alone_cores
