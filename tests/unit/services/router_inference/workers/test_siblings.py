"""Workers see each other's load, arrivals and counts at once, whatever their lists are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from router.traffic import Traffic
from services.router_inference.workers import siblings as siblings_module
from services.router_inference.workers.memory import REPORTER, Memory
from services.router_inference.workers.siblings import NoSiblings, SharedSiblings

A, B, C = ("small", "e0"), ("small", "e1"), ("large", "e1")
WIDTH = 3


def two() -> tuple[Memory, SharedSiblings, SharedSiblings]:
    """Returns the memory of two workers, and each of them."""
    memory = Memory(worker_count=2, counts_width=WIDTH)
    return memory, SharedSiblings(memory, 1), SharedSiblings(memory, 2)


def listed(worker: NoSiblings, candidates: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Has a worker take in a list; returns where it counts."""
    load_LC = worker.own_load(candidates)
    worker.publish_load()
    return load_LC


def seen(worker: NoSiblings, count: int) -> list[float]:
    """Returns the in-flight requests of a worker's siblings on its candidates."""
    load_LC = np.zeros((3, count))
    worker.add_load(load_LC)
    return [float(value) for value in load_LC[0]]


def test_load_is_seen_at_once() -> None:
    """Without a call between the workers."""
    _, first, second = two()
    own_LC = listed(first, [A, B])
    listed(second, [A, B])
    own_LC[0, 1] += 1.0
    assert seen(second, 2) == [0.0, 1.0]
    own_LC[0, 1] += 1.0
    assert seen(second, 2) == [0.0, 2.0]
    assert seen(first, 2) == [0.0, 0.0]


def test_lists_may_differ() -> None:
    """Load follows the names; what only one of them lists is left out by the other."""
    _, first, second = two()
    own_LC = listed(first, [A, B])
    listed(second, [C, B])
    own_LC[0] = 1.0, 2.0
    assert seen(second, 2) == [0.0, 2.0]
    own_LC = listed(first, [A])
    own_LC[0] = 5.0
    assert seen(second, 2) == [0.0, 0.0]
    listed(second, [C, B, A])
    assert seen(second, 3) == [0.0, 0.0, 5.0]


def test_a_list_counts_once_it_is_published() -> None:
    """A worker that is killed between leaves the load of before, until the parent takes it out."""
    memory, first, second = two()
    listed(first, [A])[0] = 3.0
    listed(second, [A])
    first.own_load([B, A])[0] = 7.0
    assert seen(second, 1) == [3.0]
    memory.retire(1, lambda counts: counts)
    assert seen(second, 1) == [0.0]
    successor = SharedSiblings(memory, 1)
    listed(successor, [B, A])[0] = 1.0, 2.0
    assert seen(second, 1) == [2.0]


@given(st.data())
def test_what_one_sees_is_what_the_others_count(data: st.DataObject) -> None:
    """Through any order of new lists, counts and ends, of three workers."""
    memory = Memory(worker_count=3, counts_width=WIDTH)
    workers = {number: SharedSiblings(memory, number) for number in (1, 2, 3)}
    lists: dict[int, list[tuple[str, str]]] = {number: [] for number in workers}
    loads = {number: listed(worker, []) for number, worker in workers.items()}
    names = st.lists(st.sampled_from([A, B, C]), unique=True)
    for value in range(1, data.draw(st.integers(1, 12))):
        number = data.draw(st.sampled_from([1, 2, 3]))
        what = data.draw(st.sampled_from(["list", "count", "end"]))
        if what == "end":
            memory.retire(number, lambda counts: counts)
            workers[number] = SharedSiblings(memory, number)
        if what in ("list", "end"):
            lists[number] = data.draw(names)
            loads[number] = listed(workers[number], lists[number])
        elif lists[number]:
            row = data.draw(st.integers(0, len(lists[number]) - 1))
            loads[number][0, row] = value
        for reader, worker in workers.items():
            expected = [
                sum(
                    loads[other][0, lists[other].index(name)]
                    for other in workers
                    if other != reader and name in lists[other]
                )
                for name in lists[reader]
            ]
            assert seen(worker, len(lists[reader])) == expected


def test_more_candidates_than_there_is_room_for_are_counted_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker goes on; its siblings keep to what they saw before."""
    monkeypatch.setattr(siblings_module, "MOST_CANDIDATES", 1)
    _, first, second = two()
    listed(second, [A])
    listed(first, [A, B])[0] = 4.0
    assert seen(second, 1) == [0.0]


def test_decisions_are_numbered_on_by_a_successor() -> None:
    """No number comes twice under one name."""
    memory, first, second = two()
    assert [first.next_sequence(), first.next_sequence(), second.next_sequence()] == [1, 2, 1]
    memory.retire(1, lambda counts: counts)
    successor = SharedSiblings(memory, 1)
    assert successor.first_sequence == 3
    assert successor.next_sequence() == 3


def test_reports_are_numbered_on_by_whoever_reports() -> None:
    """The monitor takes a smaller number for an old report."""
    memory, first, second = two()
    memory.header[REPORTER] = 2
    assert (first.is_reporter(), second.is_reporter()) == (False, True)
    assert [second.next_report(), first.next_report(), second.next_report()] == [1, 2, 3]


def test_arrivals_are_seen_at_once_and_kept_for_a_successor() -> None:
    """A rate does not fall because a worker was killed."""
    memory, first, second = two()
    assert second.other_arrivals() == []
    assert first.first_arrivals(5.0) == Traffic(5.0)
    first.show_arrivals(Traffic(6.0, 5.5, 20.0, 0.4))
    assert second.other_arrivals() == [Traffic(6.0, 5.5, 20.0, 0.4)]
    assert first.other_arrivals() == []
    memory.retire(1, lambda counts: counts)
    assert SharedSiblings(memory, 1).first_arrivals(9.0) == Traffic(6.0, 5.5, 20.0, 0.4)


def test_counts_are_those_of_all() -> None:
    """Workers that ended among them; while the parent moves theirs, what was told last stands."""
    memory, first, second = two()
    first.show_counts(np.array([1.0, 2.0, 3.0]))
    second.show_counts(np.array([10.0, 20.0, 30.0]))
    assert second.all_counts().tolist() == [11.0, 22.0, 33.0]
    memory.retire(1, lambda counts: counts)
    assert second.all_counts().tolist() == [11.0, 22.0, 33.0]
    SharedSiblings(memory, 1).show_counts(np.array([5.0, 5.0, 5.0]))
    assert second.all_counts().tolist() == [16.0, 27.0, 38.0]

    def halfway(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        assert second.all_counts().tolist() == [16.0, 27.0, 38.0]
        return counts

    memory.retire(1, halfway)


def test_a_router_of_one_process_shares_nothing() -> None:
    """It reports, numbers from 1, and its load is its own."""
    alone = NoSiblings()
    assert (alone.is_alone, alone.is_reporter(), alone.first_sequence) == (True, True, 1)
    assert list(itertools.islice(iter(alone.next_sequence, None), 2)) == [1, 2]
    assert list(itertools.islice(iter(alone.next_report, None), 2)) == [1, 2]
    listed(alone, [A])[0] = 1.0
    assert seen(alone, 1) == [0.0]
    assert alone.other_arrivals() == ()
    alone.show_arrivals(Traffic(1.0))
    assert alone.first_arrivals(1.0) == Traffic(1.0)
    alone.show_counts(np.ones(1))
    assert alone.all_counts().tolist() == [1.0]
