"""Endpoint pickers: each on a state where its choice is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from router.ledger import LoadArrays, zero_load
from router.picker import PICKERS, Picker, UnknownPickerError, pick
from router.policies.scores import Query
from tests.unit.router import fleets

FLEET = fleets.fleet(4).arrays
OPEN_C = np.ones(12, dtype=np.bool_)
LARGE_ROWS = [2, 5, 8, 11]


def query(prompt_tokens: float = 100.0) -> Query:
    """Returns a request of 8 output tokens."""
    return Query(0, 0.4, prompt_tokens, 8.0, 8.0, 0.0, 100.0, 10.0, 10.0, 0.0, 0.0)


class Turns:
    """A picker and what it remembers."""

    def __init__(self, name: str) -> None:
        """Starts with every turn at its beginning."""
        self._number = Picker(name).number
        self._last_T = np.full(3, -1)

    def pick(
        self,
        load: LoadArrays,
        allowed_C: NDArray[np.bool_],
        query: Query,
        tier: int,
        rng: np.random.Generator,
    ) -> int:
        """Returns the row of an allowed candidate of `tier`, -1 if there is none."""
        draw = float(rng.random())
        return pick(
            self._number, FLEET, load, allowed_C, query, tier, self._last_T, draw, np.zeros(12)
        )


def picked(
    turns: Turns,
    rng: np.random.Generator,
    load: LoadArrays | None = None,
    prompt_tokens: float = 100.0,
    tier: int = 2,
) -> int:
    """Returns the row a picker takes of a tier, every endpoint open."""
    load = load or zero_load(12)
    return turns.pick(load, OPEN_C, query(prompt_tokens), tier, rng)


@pytest.mark.parametrize("name", PICKERS)
def test_stays_in_the_tier_and_among_the_allowed(name: str) -> None:
    """Every picker names an allowed row of the tier, and -1 if there is none."""
    rng = np.random.default_rng(0)
    allowed_C = OPEN_C.copy()
    allowed_C[[2, 8]] = False
    picker = Turns(name)
    for _ in range(50):
        load = fleets.random_load(rng, 12, 20.0)
        assert picker.pick(load, allowed_C, query(), 2, rng) in (5, 11)
    closed_C = OPEN_C & (FLEET.tier_C != 2)
    assert Turns(name).pick(zero_load(12), closed_C, query(), 2, rng) == -1


@pytest.mark.parametrize("name", ["join-shortest-queue", "least-work-left", "prefill-decode"])
def test_takes_the_idle_endpoint(name: str) -> None:
    """With work on all but one endpoint, the free one is picked."""
    load = zero_load(12)
    for row in (2, 5, 11):
        load.in_flight_C[row] = 3.0
        load.remaining_output_tokens_C[row] = 20.0
    rng = np.random.default_rng(0)
    assert picked(Turns(name), rng, load) == 8


def test_least_work_sees_other_tiers_of_the_device() -> None:
    """Work of the small tier on a device counts, although its large queue is empty."""
    load = zero_load(12)
    load.in_flight_C[[0, 3, 6]] = 30.0
    load.remaining_output_tokens_C[[0, 3, 6]] = 240.0
    rng = np.random.default_rng(0)
    assert picked(Turns("least-work-left"), rng, load) == 11


def test_round_robin_visits_all_in_turn() -> None:
    """Four picks, four endpoints."""
    rng = np.random.default_rng(0)
    picker = Turns("round-robin")
    rows = [picked(picker, rng) for _ in range(5)]
    assert rows == [*LARGE_ROWS, 2]


def test_round_robin_keeps_a_turn_per_tier() -> None:
    """What another tier is sent does not shift the turn of this one."""
    rng = np.random.default_rng(0)
    picker = Turns("round-robin")
    rows = [picked(picker, rng, tier=tier) for tier in (2, 0, 0, 2)]
    assert rows == [2, 0, 3, 5]


def test_random_takes_every_endpoint_about_evenly() -> None:
    """Four endpoints get a quarter each, whatever their load."""
    load = zero_load(12)
    load.in_flight_C[2] = 50.0
    rng = np.random.default_rng(0)
    picker = Turns("random")
    rows = [picked(picker, rng, load) for _ in range(800)]
    assert all(150 < rows.count(row) < 250 for row in LARGE_ROWS)


def test_prefill_decode_keeps_a_long_prompt_from_many_sequences_that_decode() -> None:
    """A long prompt goes behind another prompt rather than hold up twenty short answers."""
    load = zero_load(12)
    load.in_flight_C[2] = 20.0
    load.remaining_output_tokens_C[2] = 20.0
    for row in (5, 8, 11):
        load.in_flight_C[row] = 1.0
        load.waiting_prompt_tokens_C[row] = 700.0
        load.remaining_output_tokens_C[row] = 8.0
    rng = np.random.default_rng(0)
    assert picked(Turns("least-work-left"), rng, load, 600.0) == 2
    assert picked(Turns("prefill-decode"), rng, load, 600.0) != 2


def test_power_of_two_never_takes_the_most_loaded_and_spreads() -> None:
    """The most loaded endpoint loses every pair it is in; the others all get some."""
    load = zero_load(12)
    load.in_flight_C[LARGE_ROWS] = [9.0, 1.0, 2.0, 3.0]
    rng = np.random.default_rng(0)
    picker = Turns("power-of-two")
    rows = [picked(picker, rng, load) for _ in range(400)]
    assert set(rows) == {5, 8, 11}
    assert rows.count(5) > rows.count(8) > rows.count(11)


def test_unknown_picker_lists_the_known() -> None:
    """The error names every picker."""
    with pytest.raises(UnknownPickerError, match="least-work-left"):
        Picker("best")
