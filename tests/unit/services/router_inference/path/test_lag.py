"""The lag of the loop: measured, shown, and part of admission."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import ResourceExhaustedError
from services.router_inference.path.lag import INTERVAL_S, LoopLag
from services.router_inference.records.accounts import RouterMetrics
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.scenario import scenario


class LateClock:
    """A clock whose sleeps take some time longer, and that ends after a few of them."""

    def __init__(self, late_s: list[float]) -> None:
        """Takes by how much each sleep is late, seconds."""
        self._late_s = iter(late_s)
        self._now_s = 0.0

    def monotonic_s(self) -> float:
        """Returns its time."""
        return self._now_s

    def wall_ns(self) -> int:
        """Returns nothing of use."""
        return 0

    async def sleep(self, duration_s: float) -> None:
        """Takes the time it is told."""
        late_s = next(self._late_s, None)
        if late_s is None:
            raise asyncio.CancelledError
        self._now_s += duration_s + late_s


@scenario
async def test_the_lag_follows_what_the_loop_oversleeps() -> None:
    """Half of it is the last measurement; an idle loop has none."""
    registry = CollectorRegistry()
    lag = LoopLag(clock=LateClock([0.0, 0.2, 0.2, 0.0]), metrics=RouterMetrics(registry))
    with contextlib.suppress(asyncio.CancelledError):
        await lag.run()
    assert lag.lag_s == pytest.approx(0.075)
    assert registry.get_sample_value("tiercel_loop_lag_seconds") == pytest.approx(0.075)
    assert INTERVAL_S > 0.0


@scenario
async def test_admission_counts_the_lag_in() -> None:
    """A request whose time the loop alone would take is refused before any work."""
    rig = make_rig()
    await rig.answer(rig.job(deadline_s=0.2))
    rig.core.lag.lag_s = 0.3
    with pytest.raises(ResourceExhaustedError) as caught:
        await rig.answer(rig.job(deadline_s=0.2))
    assert caught.value.reason == "DEADLINE_NOT_REACHABLE"
    assert len(rig.tier().calls) == 1
