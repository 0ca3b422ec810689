"""The study of priority classes: its cases and its table."""

from __future__ import annotations

import pytest

from router.priority import OWED
from trainer.evaluation.jobs import Context
from trainer.research import priorities
from trainer.research.scale import spec_of
from trainer.research.tuning import profile_of
from trainer.simulation.setting import shared_fleet_setting


@pytest.fixture(scope="module")
def context() -> Context:
    """Two devices, and the policy `price`."""
    profile, quality = profile_of(priorities.parser().parse_args([]))
    base = shared_fleet_setting(profile.name, profile, quality, device_count=2)
    return Context({"": base}, {"price": spec_of("price", base)})


@pytest.mark.timeout(900)  # the first run on a machine compiles
def test_the_low_class_steps_down_first(context: Context) -> None:
    """Where there is room for some of the large answers only, high ones are."""
    found = priorities.Trial("price", 4.0, (0.2, 0.6, 0.2), 900_001, 4_000).run(context)
    assert found["with", "high"][0] > found["without", "high"][0] + 0.01
    assert found["with", "low"][0] < found["without", "low"][0] - 0.01
    assert found["with", "all"][0] == pytest.approx(found["without", "all"][0], abs=0.01)
    assert found["with", "low"][1] > 0.98


@pytest.mark.timeout(900)
def test_the_low_class_is_refused_first_and_never_starved(context: Context) -> None:
    """Where not even the smallest tier can take all."""
    found = priorities.Trial("price", 40.0, (0.2, 0.6, 0.2), 900_001, 4_000).run(context)
    assert found["with", "high"][1] > found["without", "high"][1] + 0.05
    admitted = {name: 1.0 - found["with", name][2] for name in ("high", "normal", "low", "all")}
    assert admitted["high"] > admitted["normal"] > admitted["low"]
    assert admitted["low"] >= OWED * admitted["all"] - 0.02


@pytest.mark.timeout(900)
def test_one_class_alone_is_served_as_all_are(context: Context) -> None:
    """Normal requests by the very same digits, high ones once the router has seen some hundred."""
    normal = priorities.Trial("price", 8.0, (0.0, 1.0, 0.0), 900_001, 4_000).run(context)
    assert normal["with", "all"] == normal["without", "all"]
    high = priorities.Trial("price", 8.0, (1.0, 0.0, 0.0), 900_001, 4_000).run(context)
    assert high["with", "all"][0] == pytest.approx(high["without", "all"][0], abs=0.005)


def test_the_table_has_means_over_seeds() -> None:
    """A row for each class that there is, and one for all."""
    row: priorities.Row = {
        "policy": "dqn", "load": 4.0,
        ("with", "all"): (0.9, 1.0, 0.0), ("without", "all"): (0.8, 0.98, 0.01),
        ("with", "low"): (0.7, 0.9, 0.1), ("without", "low"): (0.8, 0.98, 0.01),
    }  # fmt: skip
    found = priorities.averaged([row, {**row, ("with", "all"): (0.8, 1.0, 0.0)}])
    text = priorities.table(found, "dqn")
    assert "| 4x | all | 0.800 | 0.850 | 0.980 | 1.000 | 0.010 | 0.000 |" in text
    assert "| 4x | low | 0.800 | 0.700 | 0.980 | 0.900 | 0.010 | 0.100 |" in text
    assert "high" not in text
