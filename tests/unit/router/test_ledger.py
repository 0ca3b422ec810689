"""The ledger counts exactly; loads of several routers add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.ledger import Ledger, load_from_totals
from tests.unit.router.fleets import fleet

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


operations = st.lists(
    st.tuples(st.sampled_from(["dispatch", "progress", "finish"]), st.integers(0, 5)), max_size=60
)


@given(operations)
def test_totals_never_go_negative_and_end_at_zero(steps: list[tuple[str, int]]) -> None:
    """Whatever the order of events, totals stay at or above zero and closing all empties them."""
    ledger = Ledger()
    open_keys: set[int] = set()
    for kind, key in steps:
        if kind == "dispatch" and key not in open_keys:
            ledger.dispatch(key, A if key % 2 else B, 10 * key + 1, key + 1)
            open_keys.add(key)
        elif kind == "progress":
            ledger.progress(key, 1)
        elif kind == "finish":
            assert ledger.finish(key) == (key in open_keys)
            open_keys.discard(key)
        assert all(value >= 0 for total in ledger.totals().values() for value in total)
        assert sum(total[0] for total in ledger.totals().values()) == len(open_keys)
    for key in open_keys:
        ledger.finish(key)
    assert ledger.totals() == {}


def test_loads_follow_the_fleet_by_name() -> None:
    """Requests on endpoints that left the fleet are not in its load; others keep their row."""
    present = fleet(1)
    totals = {A: (2.0, 30.0, 9.0), B: (1.0, 5.0, 4.0)}
    load = load_from_totals(totals, present.row, present.candidate_count)
    assert load.in_flight_C[present.row[A]] == 2
    assert sum(load.in_flight_C) == 2
    doubled = load.plus(load)
    assert doubled.waiting_prompt_tokens_C == [60.0, 0.0, 0.0]
