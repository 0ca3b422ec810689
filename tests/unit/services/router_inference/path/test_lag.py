"""The lag of the loop: measured, shown, and part of admission."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import ResourceExhaustedError
from services.router_inference.path.lag import INTERVAL_S, LoopLag
from services.router_inference.records.metrics import RouterMetrics
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


async def measured(late_s: list[float], ran_s: list[float]) -> LoopLag:
    """Returns what is measured if sleeps are so late, and the process has run so long in each."""
    ticks = itertools.accumulate(tick for each_s in ran_s for tick in (0.0, each_s))
    metrics = RouterMetrics(CollectorRegistry())
    lag = LoopLag(clock=LateClock(late_s), metrics=metrics, cpu_s=lambda: next(ticks, 0.0))
    with contextlib.suppress(asyncio.CancelledError):
        await lag.run()
    return lag


@pytest.mark.parametrize(
    ("late_s", "ran_s", "lasting_s"),
    [
        ([0.0, 5.0], [0.0, 0.01], 0.0),  # stopped for 5 s, and on
        ([0.0, 5.0, 0.0], [0.0, 0.01, 0.01], 0.0),
        ([0.0, 5.0, 0.2], [0.0, 0.01, 0.2], 0.1),  # then busy with what has come meanwhile
        ([0.0, 0.4], [0.0, 0.4], 0.2),  # busy: it counts at once
        ([0.4, 0.4, 0.4], [0.0, 0.0, 0.0], 0.3),  # others have the processor: once it came again
    ],
)
@scenario
async def test_a_process_that_stood_still_once_is_late_no_more(
    late_s: list[float], ran_s: list[float], lasting_s: float
) -> None:
    """What has come may lie unread all the same; of the next request it tells nothing."""
    lag = await measured(late_s, ran_s)
    assert lag.lasting_s == pytest.approx(lasting_s)
    assert lag.lag_s >= lag.lasting_s
    assert lag.lag_s > 0.0


@scenario
async def test_admission_counts_the_lag_in() -> None:
    """A request whose time the loop alone would take is refused before any work."""
    rig = make_rig()
    rig.core.lag.lag_s = 2.5  # of a pause that is over
    await rig.answer(rig.job(deadline_s=0.2))
    rig.core.lag.lasting_s = 0.3
    with pytest.raises(ResourceExhaustedError) as caught:
        await rig.answer(rig.job(deadline_s=0.2))
    assert caught.value.reason == "DEADLINE_NOT_REACHABLE"
    assert len(rig.tier().calls) == 1
