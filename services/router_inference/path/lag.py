"""How late the event loop is: what every request waits for beside its tier."""

from __future__ import annotations

from services.common.clock import Clock
from services.router_inference.records.accounts import RouterMetrics

INTERVAL_S = 0.05
_WEIGHT = 0.5


class LoopLag:
    """Measures by how much the loop oversleeps; half of it is the last measurement."""

    def __init__(self, *, clock: Clock, metrics: RouterMetrics) -> None:
        """Starts at 0."""
        self._clock = clock
        self._metrics = metrics
        self.lag_s = 0.0

    async def run(self) -> None:
        """Measures for ever."""
        while True:
            start_s = self._clock.monotonic_s()
            await self._clock.sleep(INTERVAL_S)
            late_s = max(0.0, self._clock.monotonic_s() - start_s - INTERVAL_S)
            self.lag_s += _WEIGHT * (late_s - self.lag_s)
            self._metrics.loop_lag.set(self.lag_s)
