"""The study of room for returning bursts: its cases and its table."""

from __future__ import annotations

import pytest

from trainer.evaluation.jobs import Context
from trainer.research import reserve
from trainer.research.scale import spec_of
from trainer.research.tuning import profile_of
from trainer.simulation.setting import shared_fleet_setting


@pytest.mark.timeout(900)  # the first run on a machine compiles
def test_room_kept_costs_quality_in_calm() -> None:
    """Between bursts; steady traffic is served as without, but for what noise makes of it."""
    profile, quality = profile_of(reserve.parser().parse_args([]))
    base = shared_fleet_setting(profile.name, profile, quality, device_count=2)
    context = Context({"": base}, {"price": spec_of("price", base)})

    def run(kept: str, period_s: float) -> reserve.Row:
        return reserve.Trial(kept, "price", period_s, 5.0, 0.99, 900_001, 6_000).run(context)

    without, kept = run("none", 4.0), run("peak", 4.0)
    assert kept["calm_performance"] < without["calm_performance"] - 0.01
    assert kept["back_in_time"] >= without["back_in_time"]
    assert run("none", 0.0)["back_in_time"] is None
    assert run("peak", 0.0)["performance"] == pytest.approx(
        run("none", 0.0)["performance"], abs=0.01
    )


def test_the_table_has_means_over_seeds() -> None:
    """And a dash for what there is none of."""
    row = {
        "reserve": "half",
        "policy": "dqn",
        "period_s": 2.0,
        "load": 5.0,
        "in_time": 0.99,
        "performance": 0.8,
        "calm_performance": 0.9,
        "back_in_time": 0.97,
    }
    steady = {**row, "period_s": 0.0, "back_in_time": None}
    found = reserve.averaged([row, {**row, "in_time": 0.97}, steady])
    text = reserve.table(found, "dqn")
    assert "| square wave, 2 s | 5x | half | 0.9800 | 0.9700 | 0.800 | 0.900 |" in text
    assert "| Poisson | 5x | half | 0.9900 | - | 0.800 | - |" in text
