"""Router processes: what they dropped, which ended in order, and which were cut."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.learning.online.processes import ProcessBook, ProcessRecord


def test_a_process_followed_by_another_of_its_name_was_cut() -> None:
    """Unless it had said that it ends."""
    book = ProcessBook()
    for epoch in (1, 2):
        book.see(("r", epoch))
    assert (book.cut_count, book.open) == (1, (("r", 2),))
    assert book.is_cut(("r", 1))
    book.take(ProcessRecord(("r", 2), is_end=True))
    book.see(("r", 3))
    assert book.cut_count == 1


def test_a_last_word_that_comes_late_counts() -> None:
    """A process that was taken for cut and then says that it ended was not."""
    book = ProcessBook()
    book.see(("r", 2))
    book.see(("r", 1))
    assert book.is_cut(("r", 1))
    book.take(ProcessRecord(("r", 1), is_end=True))
    assert book.cut_count == 0


def test_what_was_dropped_counts_once_however_often_it_is_told() -> None:
    """Counts are since the start of a process: the highest holds."""
    book = ProcessBook()
    for record in (ProcessRecord(("r", 1), 3, 1), ProcessRecord(("r", 1), 5, 1)):
        book.take(record)
        book.take(record)
    book.take(ProcessRecord(("s", 1), 2, 0))
    assert (book.dropped_decisions, book.dropped_outcomes) == (7, 1)


def test_nobody_can_cut_a_process_whose_records_never_came() -> None:
    """There is nothing of it that could be lost here."""
    book = ProcessBook()
    book.take(ProcessRecord(("r", 1), is_cut=True))
    assert book.cut_count == 0
    book.see(("r", 1))
    book.take(ProcessRecord(("r", 1), is_cut=True))
    assert (book.cut_count, book.open) == (1, ())


def test_its_memory_is_bounded_and_its_counts_are_kept() -> None:
    """Processes of long ago are forgotten, not what they dropped nor how they ended."""
    book = ProcessBook()
    for epoch in range(1, 3_001):
        book.take(ProcessRecord(("r", epoch), 1, 2))
    assert (book.dropped_decisions, book.dropped_outcomes) == (3_000, 6_000)
    assert book.cut_count == 2_999
    assert len(book.get_state()["known"]) == 1_000


def test_it_survives_a_restart() -> None:
    """A book restored knows what the one saved knew."""
    book, twin = ProcessBook(), ProcessBook()
    for epoch in (1, 2):
        book.take(ProcessRecord(("r", epoch), epoch, 0))
    twin.set_state(book.get_state())
    assert twin.get_state() == book.get_state()
    assert (twin.cut_count, twin.open, twin.dropped_decisions) == (1, (("r", 2),), 3)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"past": [0, 0], "known": []},
        {"past": [0, 0, -1], "known": []},
        {"past": [0, 0, 0], "known": [["r", "1", 0, 0, 0]]},
        {"past": [0, 0, 0], "known": [["r", 1, 0, 0]]},
        {"past": [0, 0, 0], "known": [["r"]]},
    ],
)
def test_a_state_that_is_none_is_refused(state: dict[str, Any]) -> None:
    """Nothing of it is taken."""
    book = ProcessBook()
    with pytest.raises((LookupError, TypeError, ValueError)):
        book.set_state(state)
    assert book.get_state() == ProcessBook().get_state()
