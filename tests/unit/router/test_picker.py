"""Endpoint pickers: each on a state where its choice is known."""

from __future__ import annotations

import numpy as np
import pytest

from router.ledger import zero_load
from router.picker import PICKERS, Picker
from tests.unit.router import fleets

FLEET = fleets.fleet(4).arrays
OPEN_C = np.ones(12, dtype=np.bool_)
LARGE_ROWS = [2, 5, 8, 11]


@pytest.mark.parametrize("name", PICKERS)
def test_stays_in_the_tier_and_among_the_allowed(name: str) -> None:
    """Every picker names an allowed row of the tier, and -1 if there is none."""
    rng = np.random.default_rng(0)
    allowed_C = OPEN_C.copy()
    allowed_C[[2, 8]] = False
    picker = Picker(name)
    for _ in range(50):
        load = fleets.random_load(rng, 12, 20.0)
        assert picker.pick(FLEET, load, allowed_C, 2, 100.0, 8.0, rng) in (5, 11)
    closed_C = OPEN_C & (FLEET.tier_C != 2)
    assert Picker(name).pick(FLEET, zero_load(12), closed_C, 2, 100.0, 8.0, rng) == -1


@pytest.mark.parametrize("name", ["least-outstanding", "least-work", "prefill-decode"])
def test_takes_the_idle_endpoint(name: str) -> None:
    """With work on all but one endpoint, the free one is picked."""
    load = zero_load(12)
    for row in (2, 5, 11):
        load.in_flight_C[row] = 3.0
        load.remaining_output_tokens_C[row] = 20.0
    rng = np.random.default_rng(0)
    assert Picker(name).pick(FLEET, load, OPEN_C, 2, 100.0, 8.0, rng) == 8


def test_least_work_sees_other_tiers_of_the_device() -> None:
    """Work of the small tier on a device counts, although its large queue is empty."""
    load = zero_load(12)
    load.in_flight_C[[0, 3, 6]] = 30.0
    load.remaining_output_tokens_C[[0, 3, 6]] = 240.0
    rng = np.random.default_rng(0)
    assert Picker("least-work").pick(FLEET, load, OPEN_C, 2, 100.0, 8.0, rng) == 11


def test_round_robin_visits_all_in_turn() -> None:
    """Four picks, four endpoints."""
    rng = np.random.default_rng(0)
    picker = Picker("round-robin")
    rows = [picker.pick(FLEET, zero_load(12), OPEN_C, 2, 1.0, 1.0, rng) for _ in range(5)]
    assert rows == [*LARGE_ROWS, 2]


def test_power_of_two_never_takes_the_most_loaded_and_spreads() -> None:
    """The most loaded endpoint loses every pair it is in; the others all get some."""
    load = zero_load(12)
    load.in_flight_C[LARGE_ROWS] = [9.0, 1.0, 2.0, 3.0]
    rng = np.random.default_rng(0)
    picker = Picker("power-of-two")
    rows = [picker.pick(FLEET, load, OPEN_C, 2, 1.0, 1.0, rng) for _ in range(400)]
    assert set(rows) == {5, 8, 11}
    assert rows.count(5) > rows.count(8) > rows.count(11)


def test_unknown_picker_lists_the_known() -> None:
    """The error names every picker."""
    with pytest.raises(LookupError, match="least-work"):
        Picker("best")
