"""How late the event loop is: what every request waits for beside its tier."""

from __future__ import annotations

import time
from collections.abc import Callable

from services.common.clock import Clock
from services.router_inference.records.metrics import RouterMetrics

INTERVAL_S = 0.05
_WEIGHT = 0.5
_BUSY_SHARE = 0.5
"""Part of a delay in which a process has run that was late because it had so much to do."""


class LoopLag:
    """Measures by how much the loop oversleeps; half of it is the last measurement.

    Attributes:
        lag_s: That, seconds: how long what has come may have lain unread.
        lasting_s: What of it the next request has to expect, seconds. A process that was stopped
            (frozen, moved to another machine, a machine that slept) is late once, and on time right
            after; one that is busy, or gets no processor, is late again and again.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        metrics: RouterMetrics,
        cpu_s: Callable[[], float] = time.process_time,
    ) -> None:
        """Starts at 0; `cpu_s` tells how long the process has run, all its threads together."""
        self._clock = clock
        self._metrics = metrics
        self._cpu_s = cpu_s
        self.lag_s = self.lasting_s = 0.0

    async def run(self) -> None:
        """Measures for ever."""
        before_s = 0.0
        while True:
            start_s, start_cpu_s = self._clock.monotonic_s(), self._cpu_s()
            await self._clock.sleep(INTERVAL_S)
            late_s = max(0.0, self._clock.monotonic_s() - start_s - INTERVAL_S)
            was_busy = self._cpu_s() - start_cpu_s >= _BUSY_SHARE * late_s
            lasting_s = late_s if was_busy else min(late_s, before_s)
            before_s = late_s
            self.lag_s += _WEIGHT * (late_s - self.lag_s)
            self.lasting_s += _WEIGHT * (lasting_s - self.lasting_s)
            self._metrics.loop_lag.set(self.lag_s)
