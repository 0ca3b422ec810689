"""Decisions taken in: exact, small, and not to be confused by what a stranger claims."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.learning.online.settled import _MOST_PROCESSES, _MOST_RUNS, SettledKeys


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.integers(1, 30)), max_size=60)
)
def test_it_is_a_set(keys: list[tuple[str, int, int]]) -> None:
    """What was added is in it and nothing else, after a restart too."""
    settled = SettledKeys(keys)
    restored = SettledKeys()
    restored.set_state(json.loads(json.dumps(settled.get_state())))
    for router in "ab":
        for epoch in range(1, 4):
            for number in range(32):
                key = (router, epoch, number)
                assert (key in settled) == (key in restored) == (key in keys)


def test_a_far_number_or_epoch_hides_nothing() -> None:
    """The largest epoch and number of a router leave its other records to come."""
    settled = SettledKeys([("r", 5, 1), ("r", 2**63 - 1, 1), ("r", 5, 2**53)])
    assert ("r", 5, 2) not in settled
    assert ("r", 6, 1) not in settled


def test_numbers_without_gaps_take_no_room() -> None:
    """A router's life is one run, in whatever order its records come."""
    settled = SettledKeys(("r", 1, number) for number in (5, 1, 3, 2, 4))
    assert settled.get_state() == [["r", 1, [1], [5]]]


def test_it_knows_what_is_missing() -> None:
    """Routers number from 1 without gaps, so each number below the highest should be there."""
    settled = SettledKeys(("r", 1, number) for number in (2, 3, 7))
    assert settled.missing_count == 4
    for key in (("r", 1, 1), ("r", 1, 5), ("s", 1, 3)):
        settled.add(key)
    assert settled.missing_count == settled.copy().missing_count == 2 + 2


def test_it_is_bounded() -> None:
    """Beyond the bounds the shortest runs and the oldest processes are forgotten."""
    settled = SettledKeys(("r", 1, number) for number in (1, 2, *range(10, 4 * _MOST_RUNS, 2)))
    [[_, _, first, last]] = settled.get_state()
    assert (first[0], last[0]) == (1, 2)
    assert len(first) == _MOST_RUNS
    settled = SettledKeys((str(n), 1, 1) for n in range(2 * _MOST_PROCESSES))
    assert len(settled.get_state()) == _MOST_PROCESSES
    assert ("0", 1, 1) not in settled


def test_a_copy_is_its_own() -> None:
    """What is added to one is not in the other."""
    settled = SettledKeys([("r", 1, 1)])
    twin = settled.copy()
    twin.add(("r", 1, 2))
    assert ("r", 1, 2) not in settled


@pytest.mark.parametrize(
    "state",
    [
        [["r", 1, [1, 5], [3]]],
        [["r", 1, [5, 1], [6, 3]]],
        [["r", 1, [1, 3], [3, 4]]],
        [["r", 1, [4], [3]]],
        [["r", 1, [1.5], [3]]],
        [["r", 1, [1], [True]]],
        [["r", 1e999, [1], [3]]],
        [["r", 1, 7, 7]],
        [["r", 1]],
    ],
    ids=str,
)
def test_a_state_that_is_none_is_refused(state: list[Any]) -> None:
    """Runs without an end, out of order, or of anything but whole numbers; what was stays."""
    settled = SettledKeys([("r", 1, 1)])
    with pytest.raises((TypeError, ValueError)):
        settled.set_state(state)
    assert ("r", 1, 1) in settled
