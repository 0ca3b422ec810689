"""What the parts of a router know of the other workers, and that there is none in most routers."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.traffic import Traffic
from services.router_inference.workers.common_pressure import CommonPressure
from services.router_inference.workers.memory import (
    CHANGES,
    DECISION_SEQUENCE,
    LAST_S,
    LAYOUT,
    LAYOUT_WORD,
    LOADS,
    LONG,
    MOST_CANDIDATES,
    REPORT_SEQUENCE,
    REPORTER,
    SECRET_BYTES,
    SHORT,
    START_S,
    TABLE_TURN,
    Block,
    Counts,
    Memory,
    candidate_keys,
)


class NoSiblings:
    """A router of one process: nothing is shared, everything is its own.

    Attributes:
        is_alone: True if there are no other workers.
        first_sequence: number of this process's first decision.
        next_sequence: returns the number of its next decision.
        next_report: returns the number of the router's next report.
    """

    is_alone = True

    def __init__(self) -> None:
        """Starts to number decisions and reports."""
        self.first_sequence = 1
        self.next_sequence: Callable[[], int] = itertools.count(1).__next__
        self.next_report: Callable[[], int] = itertools.count(1).__next__

    def is_reporter(self) -> bool:
        """Returns whether this worker reports for the router."""
        return True

    def own_load(self, candidates: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """Returns where this worker counts its load on these candidates, idle."""
        return np.zeros((LOADS, len(candidates)))

    def publish_load(self) -> None:
        """Shows the siblings what `own_load` returned last."""

    def add_load(self, load_LC: NDArray[np.float64]) -> None:
        """Adds the siblings' load to one per candidate of the last `own_load`."""

    def common_pressure(self) -> CommonPressure | None:
        """Returns this worker's side of the pressure that all share; None if it is alone."""
        return None

    def first_arrivals(self, now_s: float) -> Traffic:
        """Returns what this worker starts with: nothing, or what its predecessor had seen."""
        return Traffic(now_s)

    def show_arrivals(self, own: Traffic) -> None:
        """Shows the siblings the arrivals at this worker."""

    def other_arrivals(self) -> Sequence[Traffic]:
        """Returns the siblings' arrivals, as far as they tell rates."""
        return ()

    def conversations(self, words: int) -> tuple[NDArray[np.int64], bytes]:
        """Returns so many words to remember conversations in, and the key of their hashes."""
        return np.zeros(words, np.int64), secrets.token_bytes(SECRET_BYTES)

    def task_places(self, tasks: Sequence[str]) -> list[int]:
        """Returns the place of each task in what workers count."""
        return list(range(len(tasks)))

    def show_counts(self, own: Counts) -> None:
        """Shows the siblings what this worker has counted."""
        self._counts = own

    def all_counts(self) -> Counts:
        """Returns what all workers have shown, those that ended among them."""
        return self._counts

    def show_trial(self, own: NDArray[np.float64]) -> None:
        """Shows the siblings what this worker has seen of a policy on trial."""

    def other_trials(self) -> Sequence[NDArray[np.float64]]:
        """Returns what the siblings have shown of a policy on trial."""
        return ()

    def show_watch(self, own: NDArray[np.float64]) -> None:
        """Shows the siblings what this worker has seen of a watched policy."""

    def other_watches(self) -> Sequence[NDArray[np.float64]]:
        """Returns what the siblings have shown of a watched policy."""
        return ()


@dataclass(slots=True)
class _Table:
    """A sibling's table as last looked at.

    Attributes:
        block: whose it is.
        turn: turn of the table; -1 = look anew.
        load_LC: its loads, which go on changing; None where it has none of our candidates.
        rows: which of them are ours; None = all, in our order.
        own_rows: which of ours they are.
    """

    block: Block
    turn: int = -1
    load_LC: NDArray[np.float64] | None = None
    rows: NDArray[np.intp] | None = None
    own_rows: NDArray[np.intp] | None = None


class SharedSiblings(NoSiblings):
    """One of several workers, by the memory they share."""

    is_alone = False

    def __init__(self, memory: Memory, number: int) -> None:
        """Takes the memory and the number of this worker."""
        if memory.header[LAYOUT_WORD] != LAYOUT:
            raise RuntimeError(f"the workers' memory has layout {memory.header[LAYOUT_WORD]}")
        self._memory = memory
        self._number = number
        self._block = memory.blocks[number - 1]
        others = [block for block in memory.blocks if block is not self._block]
        self._others = [_Table(block) for block in others]
        self._keys = candidate_keys(())
        self._all: Counts = np.zeros(0)
        self.first_sequence = self._block.whole[DECISION_SEQUENCE] + 1
        self.next_sequence = self._next_sequence
        self.next_report = self._next_report

    def is_reporter(self) -> bool:
        """Returns whether this worker reports for the router."""
        return self._memory.header[REPORTER] == self._number

    def _next_sequence(self) -> int:
        # In the block, so that a successor goes on where this one was killed.
        number = self._block.whole[DECISION_SEQUENCE] + 1
        self._block.whole[DECISION_SEQUENCE] = number
        return number

    def _next_report(self) -> int:
        number = self._memory.header[REPORT_SEQUENCE] + 1
        self._memory.header[REPORT_SEQUENCE] = number
        return number

    def own_load(self, candidates: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """Returns where this worker counts its load on these candidates, idle."""
        self._keys = candidate_keys(candidates)
        for table in self._others:
            table.turn = -1
        if len(candidates) > MOST_CANDIDATES:
            return super().own_load(candidates)
        return self._block.next_table(self._keys)

    def publish_load(self) -> None:
        """Shows the siblings what `own_load` returned last."""
        if len(self._keys) <= MOST_CANDIDATES:
            self._block.turn_table()

    def add_load(self, load_LC: NDArray[np.float64]) -> None:
        """Adds the siblings' load to one per candidate of the last `own_load`."""
        for table in self._others:
            if table.block.whole[TABLE_TURN] != table.turn:
                self._look(table)
            if table.load_LC is None:
                continue
            if table.rows is None:
                load_LC += table.load_LC
            else:
                load_LC[:, table.own_rows] += table.load_LC[:, table.rows]

    def _look(self, table: _Table) -> None:
        table.turn, keys, load_LC = table.block.table()
        table.load_LC, table.rows, table.own_rows = load_LC, None, None
        if np.array_equal(keys, self._keys):
            return
        _, table.own_rows, table.rows = np.intersect1d(
            self._keys, keys, assume_unique=True, return_indices=True
        )
        if not len(table.rows):
            table.load_LC = None

    def common_pressure(self) -> CommonPressure | None:
        """Returns this worker's side of the pressure that all share."""
        return CommonPressure(self._memory, self._number)

    def first_arrivals(self, now_s: float) -> Traffic:
        """Returns what this worker starts with: nothing, or what its predecessor had seen."""
        return _arrivals(self._block) if self._block.real[START_S] else Traffic(now_s)

    def show_arrivals(self, own: Traffic) -> None:
        """Shows the siblings the arrivals at this worker."""
        words = self._block.real
        # 0 says that none has come yet, or none that counts.
        words[LAST_S], words[START_S] = own.last_s, max(0.0, own.start_s)
        words[SHORT], words[LONG] = own.short, own.long

    def other_arrivals(self) -> Sequence[Traffic]:
        """Returns the siblings' arrivals, as far as they tell rates."""
        blocks = (table.block for table in self._others)
        return [_arrivals(block) for block in blocks if block.real[START_S]]

    def conversations(self, words: int) -> tuple[NDArray[np.int64], bytes]:
        """Returns so many words to remember conversations in, and the key of their hashes."""
        if len(self._memory.conversations) < words:
            return super().conversations(words)
        return self._memory.conversations[:words], self._memory.secret

    def task_places(self, tasks: Sequence[str]) -> list[int]:
        """Returns the place of each task in what workers count, those that ended among them."""
        return self._memory.task_places(tasks)

    def show_counts(self, own: Counts) -> None:
        """Shows the siblings what this worker has counted."""
        self._block.set_counts(own)

    def all_counts(self) -> Counts:
        """Returns what all workers have shown, those that ended among them."""
        memory = self._memory
        before = memory.header[CHANGES]
        blocks = (memory.ended, *memory.blocks)
        total = np.add.reduce([block.counts() for block in blocks])
        # While the parent moves the counts of one that ended, what was told last stands.
        if before % 2 == 0 and memory.header[CHANGES] == before:
            self._all = total
        return self._all if len(self._all) else np.zeros_like(total)

    def show_trial(self, own: NDArray[np.float64]) -> None:
        """Shows the siblings what this worker has seen of a policy on trial."""
        self._block.set_trial(own)

    def other_trials(self) -> Sequence[NDArray[np.float64]]:
        """Returns what the siblings have shown of a policy on trial."""
        return [table.block.trial() for table in self._others]

    def show_watch(self, own: NDArray[np.float64]) -> None:
        """Shows the siblings what this worker has seen of a watched policy."""
        self._block.set_watch(own)

    def other_watches(self) -> Sequence[NDArray[np.float64]]:
        """Returns what the siblings have shown of a watched policy."""
        return [table.block.watch() for table in self._others]


def _arrivals(block: Block) -> Traffic:
    words = block.real
    return Traffic(words[LAST_S], words[START_S], words[SHORT], words[LONG])
