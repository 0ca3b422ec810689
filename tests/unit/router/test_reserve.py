"""What is remembered of peaks, and what steady traffic pays."""

from __future__ import annotations

import numpy as np
import pytest

from router import reserve, traffic
from router.reserve import BLOCK_S, Peaks
from router.traffic import Traffic
from trainer.simulation.workload import poisson


def seen(arrival_N: np.ndarray, start_s: float = 0.0) -> Peaks:
    """Returns what a router remembers that saw these arrivals."""
    found, own = Peaks(), Traffic(start_s)
    for now_s in (start_s + arrival_N).tolist():
        traffic.count_arrival(own, now_s, 10.0)
        rate_rps = traffic.short_rate_rps(own, now_s)
        reserve.note(found, rate_rps, traffic.age_s(own, now_s), now_s)
    return found


@pytest.mark.parametrize("rate_rps", [2.0, 20.0, 200.0, 2000.0])
def test_steady_traffic_keeps_no_room_to_speak_of(rate_rps: float) -> None:
    """The highest of many noisy rates is high; what may be noise is left out."""
    arrival_N = poisson(rate_rps, min(60.0, 20_000 / rate_rps), np.random.default_rng(5))
    assert reserve.least_rate_rps(seen(arrival_N), 1.0) < 1.1 * rate_rps + 1.0


def test_a_burst_is_remembered_for_half_a_minute_to_a_minute() -> None:
    """Then it is forgotten, and a share of it is all that room is kept for."""
    found = seen(poisson(500.0, 2.0, np.random.default_rng(5)))
    assert 350.0 < reserve.least_rate_rps(found, 1.0) < 650.0
    assert reserve.least_rate_rps(found, 0.5) == 0.5 * reserve.least_rate_rps(found, 1.0)
    assert reserve.least_rate_rps(found, 0.0) == 0.0
    reserve.note(found, 10.0, 60.0, BLOCK_S + 1.0)
    assert reserve.least_rate_rps(found, 1.0) > 350.0
    reserve.note(found, 10.0, 60.0, 2.0 * BLOCK_S + 2.0)
    assert reserve.least_rate_rps(found, 1.0) < 10.0


def test_after_a_long_silence_nothing_is_remembered() -> None:
    """Whatever the clock shows when the next request comes."""
    found = seen(poisson(500.0, 2.0, np.random.default_rng(5)), start_s=1e6)
    assert reserve.least_rate_rps(found, 1.0) > 350.0
    reserve.note(found, 10.0, 60.0, 1e6 + 300.0)
    assert reserve.least_rate_rps(found, 1.0) < 10.0


def test_the_first_arrivals_are_no_peak() -> None:
    """Their rate tells nothing yet."""
    found = seen(np.array([0.0, 0.001, 0.002, 0.1]))
    assert reserve.least_rate_rps(found, 1.0) == 0.0
