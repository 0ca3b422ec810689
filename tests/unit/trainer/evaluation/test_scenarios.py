"""Arrival processes of the protocol."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluation.scenarios import SCENARIOS, WARM_UP_S, whole_periods_s

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_arrivals_have_the_rate_they_are_asked_for(name: str) -> None:
    """A load means the same whatever the arrival process."""
    rng = np.random.default_rng(3)
    counts = [len(SCENARIOS[name].make(200.0, 400.0, rng)) for _ in range(4)]
    assert np.mean(counts) == pytest.approx(200.0 * 400.0, rel=0.08)


@pytest.mark.parametrize("duration_s", [0.8, 3.0, 6.0, 8.9, 21.0, 30.0])
def test_a_square_wave_has_its_rate_in_a_short_run_too(duration_s: float) -> None:
    """As much of it as counts: a run ends with a whole wave, whatever its length."""
    arrival_N = SCENARIOS["square-wave"].make(20_000.0, duration_s, np.random.default_rng(1))
    start_s = WARM_UP_S if duration_s > WARM_UP_S else 0.0
    seen_rps = np.count_nonzero(arrival_N >= start_s) / (duration_s - start_s)
    assert seen_rps == pytest.approx(20_000.0, rel=0.03)


@pytest.mark.parametrize(
    ("duration_s", "period_s", "found_s"), [(19.7, 8.0, 17.0), (6.0, 0.5, 6.0), (3.0, 30.0, 31.0)]
)
def test_a_run_is_as_long_as_whole_periods(
    duration_s: float, period_s: float, found_s: float
) -> None:
    """The nearest number of them, and at least one, after the warm-up."""
    assert whole_periods_s(duration_s, period_s) == pytest.approx(found_s)
