"""What a demo runs."""

from __future__ import annotations

from services.demo.plan import PHASES, DemoPlan


def test_the_burst_is_at_least_three_times_the_capacity() -> None:
    """Rates follow from the capacity, the deadline from the unloaded latency."""
    phases = DemoPlan().phases(20.0)
    assert [phase["name"] for phase in phases] == list(PHASES)
    assert float(phases[1]["rate_rps"]) >= 60.0
    assert float(phases[0]["rate_rps"]) < 20.0
    assert DemoPlan().deadline_s(0.04, 0.0501) == 0.2
    assert DemoPlan().deadline_s(0.04, 0.6) == 0.24
