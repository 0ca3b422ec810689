"""The ledger counts exactly, in place, whatever becomes of the fleet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from router.ledger import Ledger

A = ("small", "e0")
B = ("large", "e1")


def test_a_request_counts_from_dispatch_to_finish() -> None:
    """Prompt tokens wait until the first token, output tokens fall with each, all end at zero."""
    ledger = Ledger()
    ledger.dispatch(1, A, prompt_tokens=100, output_tokens=8)
    assert ledger.totals() == {A: (1, 100, 8)}
    ledger.progress(1, 3)
    assert ledger.totals() == {A: (1, 0, 5)}
    assert ledger.finish(1)
    assert ledger.totals() == {}
    assert not ledger.finish(1)


def test_a_prediction_that_was_too_short_does_not_read_as_idle() -> None:
    """At least one output token stays due until the request ends."""
    ledger = Ledger()
    ledger.dispatch(1, A, 10, 2)
    ledger.progress(1, 50)
    assert ledger.totals()[A] == (1, 0, 1)


def test_the_same_key_cannot_be_dispatched_twice() -> None:
    """Counting one request twice is a bug of the caller and is refused."""
    ledger = Ledger()
    ledger.dispatch(1, A, 10, 2)
    with pytest.raises(KeyError, match="already"):
        ledger.dispatch(1, B, 10, 2)


CANDIDATES = [("small", "e0"), ("large", "e0"), ("small", "e1"), ("large", "e1"), ("small", "e2")]
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("dispatch"),
            st.integers(0, 5),
            st.sampled_from(CANDIDATES),
            st.floats(0.1, 1e4),
            st.integers(1, 50),
        ),
        st.tuples(st.just("progress"), st.integers(0, 5), st.integers(0, 9)),
        st.tuples(st.just("finish"), st.integers(0, 5)),
        st.tuples(st.just("move"), st.permutations(CANDIDATES), st.integers(0, 5)),
    ),
    max_size=60,
)


def moved(ledger: Ledger, candidates: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Moves a ledger to a fleet of these candidates; returns the array it counts in."""
    own_LC = np.full((3, len(candidates)), 7.0)
    ledger.move({candidate: row for row, candidate in enumerate(candidates)}, own_LC)
    return own_LC


@given(OPERATIONS)
def test_counts_are_the_sum_of_what_is_under_way(steps: list[tuple[Any, ...]]) -> None:
    """In any order of events, and of fleets that shrink, grow and reorder; idle is exactly zero."""
    ledger, names = Ledger(), CANDIDATES[:2]
    own_LC = moved(ledger, names)
    open_requests: dict[int, list[Any]] = {}
    for kind, *rest in steps:
        if kind == "dispatch" and rest[0] not in open_requests:
            ledger.dispatch(*rest)
            open_requests[rest[0]] = [*rest[1:], True]
        elif kind == "progress":
            ledger.progress(*rest)
            if request := open_requests.get(rest[0]):
                request[2], request[3] = max(1.0, request[2] - rest[1]), False
        elif kind == "finish":
            assert ledger.finish(rest[0]) == (open_requests.pop(rest[0], None) is not None)
        elif kind == "move":
            names = rest[0][: rest[1]]
            own_LC = moved(ledger, names)
        assert len(ledger) == len(open_requests)
        totals = ledger.totals()
        for candidate in CANDIDATES:
            there = [each for each in open_requests.values() if each[0] == candidate]
            wanted = (
                len(there),
                sum(each[1] for each in there if each[3]),
                sum(each[2] for each in there),
            )
            assert totals.get(candidate, (0.0, 0.0, 0.0)) == pytest.approx(wanted, abs=1e-9)
            if candidate in names:
                column = tuple(own_LC[:, names.index(candidate)])
                assert column == totals.get(candidate, (0.0, 0.0, 0.0))


def test_a_request_on_an_endpoint_that_left_comes_back_with_it() -> None:
    """It is counted beside the fleet meanwhile, and its progress there is not lost."""
    ledger = Ledger()
    moved(ledger, [A, B])
    ledger.dispatch(1, A, 100.0, 8.0)
    without = moved(ledger, [B])
    assert not without.any()
    ledger.progress(1, 3)
    assert ledger.totals() == {A: (1, 0, 5)}
    assert moved(ledger, [B, A])[:, 1].tolist() == [1.0, 0.0, 5.0]


def test_the_counts_are_in_the_array_at_once() -> None:
    """Whoever holds the array sees a dispatch without asking for it."""
    ledger = Ledger()
    own_LC = moved(ledger, [A, B])
    ledger.dispatch(1, B, 30.0, 9.0)
    assert own_LC.tolist() == [[0.0, 1.0], [0.0, 30.0], [0.0, 9.0]]
