"""Memory that the workers of a router share, so that they see each other at once.

It is one anonymous mapping, made by the parent before the first fork. It has no name, so nothing of
it outlives the processes, and none can meet a ledger of another version or of a router that died.

Every worker has a block that it alone writes, and the parent after its death. There is no lock: all
that is read while it may change is a word of eight aligned bytes, which is stored and loaded as a
whole. What takes several words is written to a part that nobody reads, and comes into force by one
word, the turn: an even turn means the first part, an odd one the second. A reader looks at the turn
again afterwards. So a worker may be killed at any instruction: what it had not finished was never
in force, and one turn takes out the rest.
"""

from __future__ import annotations

import hashlib
import mmap
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.ledger import LoadArrays
from router.watch import WIDTH

MOST_CANDIDATES = 65_536
"""Candidates a table has room for; pages that nobody writes to take no memory."""
LOADS = len(LoadArrays._fields)

Counts = NDArray[np.float64]

SECRET_BYTES = 16
_WORD_BYTES = 8
_HEADER_WORDS = 64
REPORTER, REPORT_SEQUENCE, CHANGES, LAYOUT_WORD = range(4)
"""Words of the header: number of the worker that reports, number of the last report, how often the
parent began or ended to move counts (an odd number while it does), and the layout."""
LAYOUT = 2
"""Number of this layout; a worker of another one does not start. All are forked from one parent, so
none can be, unless code changes that."""
TABLE_TURN, COUNTS_TURN, DECISION_SEQUENCE, LAST_S, START_S, SHORT, LONG, TRIAL_TURN = range(8)
"""Words at the start of a block: turns, number of the last decision, `router.traffic.Traffic`."""
WATCH_TURN, HOLD_KEY = range(8, 10)
"""The turn of what is shared of a watch, and what a list of tasks is known by."""
_BLOCK_HEAD_WORDS = 16
TRIAL_WIDTH = 16
"""Numbers that a worker shares of a policy on trial."""
HOLD_TASKS = 64
"""Tasks of which workers share pressures; that of others is each worker's own."""
HOLD_KINDS = 2
"""What was seen, and what was claimed."""
_HOLD_MOMENTS = 4
_HOLD_WIDTH = _HOLD_MOMENTS + 3 * HOLD_KINDS * HOLD_TASKS
WATCH_WIDTH = 2 + 2 * WIDTH
"""Numbers that a worker shares of a policy that is watched: of which activation, why it was sent
back, and the figures of the replaced policy and its own."""


class Hold(NamedTuple):
    """What workers share of the common pressure; of each only the worker itself writes.

    Every word is good by itself. See `common_pressure.py`.

    Attributes:
        key_W: what each worker's list of tasks is known by; 0 where none has been yet.
        moments_WM: moments and a span of each, seconds.
        totals_WNK: rises of the pressure added up, by kind and task: what a worker and those before
            it in its place wrote.
        ends_WNK: recent ends.
        stand_WNK: the pressure.
    """

    key_W: NDArray[np.int64]
    moments_WM: NDArray[np.float64]
    totals_WNK: NDArray[np.float64]
    ends_WNK: NDArray[np.float64]
    stand_WNK: NDArray[np.float64]

    @classmethod
    def of(cls, blocks: NDArray[np.int64], counts_width: int) -> Hold:
        """Returns it of all blocks, a row each."""
        start = _BLOCK_HEAD_WORDS + 2 * (counts_width + TRIAL_WIDTH + WATCH_WIDTH)
        hold = blocks[:, start : start + _HOLD_WIDTH].view(np.float64)
        shape = (len(blocks), HOLD_KINDS, HOLD_TASKS)
        return cls(
            blocks[:, HOLD_KEY],
            hold[:, :_HOLD_MOMENTS],
            *(
                _as_view(hold[:, first : first + HOLD_KINDS * HOLD_TASKS], shape)
                for first in range(_HOLD_MOMENTS, _HOLD_WIDTH, HOLD_KINDS * HOLD_TASKS)
            ),
        )


def _as_view(rows: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Returns rows cut once more, in the same memory."""
    word = rows.itemsize
    strides = (rows.strides[0], shape[2] * word, word)
    return np.lib.stride_tricks.as_strided(rows, shape, strides)


class Memory:
    """The mapping, cut into a header, the counts of ended workers, and a block for each worker.

    Attributes:
        conversations: what all workers remember of conversations (`path.conversations`).
        secret: key of the hashes in it.
    """

    def __init__(
        self, *, worker_count: int, counts_width: int, conversation_words: int = 0
    ) -> None:
        """Maps it, all zero.

        Args:
            worker_count: Most workers at a time.
            counts_width: Numbers in what each worker counts.
            conversation_words: Words to remember conversations in.
        """
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self._place_of: dict[str, int] = {}
        mapped = mmap.mmap(-1, max(1, conversation_words) * _WORD_BYTES)
        self.conversations = np.frombuffer(mapped, dtype=np.int64)
        self._table_words = 1 + MOST_CANDIDATES * (1 + LOADS)
        block_words = _BLOCK_HEAD_WORDS + 2 * (
            counts_width + TRIAL_WIDTH + WATCH_WIDTH + self._table_words
        )
        block_words += _HOLD_WIDTH
        first = _HEADER_WORDS
        total_bytes = (first + (worker_count + 1) * block_words) * _WORD_BYTES
        mapped = mmap.mmap(-1, total_bytes)
        self.header = memoryview(mapped).cast("q")[:_HEADER_WORDS]
        self.header[LAYOUT_WORD] = LAYOUT
        words = np.frombuffer(mapped, dtype=np.int64)
        self.ended = Block(words[first : first + block_words], counts_width)
        """Counts of the workers that ended; the parent writes them."""
        self.blocks = [
            Block(words[first + number * block_words :][:block_words], counts_width)
            for number in range(1, worker_count + 1)
        ]
        """By number of the worker, from 1 at index 0."""
        places = words[first + block_words :][: worker_count * block_words]
        self.hold = Hold.of(places.reshape(worker_count, block_words), counts_width)
        """What all workers share of the common pressure, by number of the worker less 1."""

    def task_places(self, tasks: Sequence[str]) -> list[int]:
        """Returns the place of each task in what workers count: its own for good.

        Who is named first gets the next place. The parent names all tasks before it forks the
        workers that count by them, so all have the same, whatever the settings of each.
        """
        return [self._place_of.setdefault(name, len(self._place_of)) for name in tasks]

    def retire(self, number: int, as_ended: Callable[[Counts], Counts]) -> None:
        """Takes a worker that has ended out: its load is gone, its counts stay.

        So does what it added to the common pressure, which its successor goes on from.

        Args:
            number: its number.
            as_ended: returns its counts, what was under way counted as ended.
        """
        block = self.blocks[number - 1]
        block.next_table(candidate_keys(()))
        block.turn_table()
        block.set_trial(np.zeros(TRIAL_WIDTH))
        block.set_watch(np.zeros(WATCH_WIDTH))
        self.header[CHANGES] += 1
        counts = block.counts()
        self.ended.set_counts(self.ended.counts() + as_ended(counts))
        block.set_counts(np.zeros_like(counts))
        self.header[CHANGES] += 1


class Block:
    """What one worker shares.

    Attributes:
        whole: its head as whole numbers.
        real: its head as floating-point numbers.
    """

    def __init__(self, words: NDArray[np.int64], counts_width: int) -> None:
        """Takes its part of the mapping."""
        head = words[:_BLOCK_HEAD_WORDS].data.cast("B")
        self.whole = head.cast("q")
        self.real = head.cast("d")
        counts = words[_BLOCK_HEAD_WORDS:].view(np.float64)
        self._counts = counts[:counts_width], counts[counts_width : 2 * counts_width]
        trials = counts[2 * counts_width :]
        self._trials = trials[:TRIAL_WIDTH], trials[TRIAL_WIDTH : 2 * TRIAL_WIDTH]
        watches = trials[2 * TRIAL_WIDTH :]
        self._watches = watches[:WATCH_WIDTH], watches[WATCH_WIDTH : 2 * WATCH_WIDTH]
        tables = words[
            _BLOCK_HEAD_WORDS + 2 * (counts_width + TRIAL_WIDTH + WATCH_WIDTH) + _HOLD_WIDTH :
        ]
        half = len(tables) // 2
        self._tables = tables[:half], tables[half : 2 * half]

    def counts(self) -> Counts:
        """Returns the counts in force."""
        return self._read(COUNTS_TURN, self._counts)

    def set_counts(self, counts: Counts) -> None:
        """Brings other counts into force."""
        turn = self.whole[COUNTS_TURN] + 1
        self._counts[turn & 1][:] = counts
        self.whole[COUNTS_TURN] = turn

    def trial(self) -> NDArray[np.float64]:
        """Returns what is in force of a policy on trial, all zero for none."""
        return self._read(TRIAL_TURN, self._trials)

    def set_trial(self, row: NDArray[np.float64]) -> None:
        """Brings other numbers of a trial into force."""
        turn = self.whole[TRIAL_TURN] + 1
        self._trials[turn & 1][:] = row
        self.whole[TRIAL_TURN] = turn

    def watch(self) -> NDArray[np.float64]:
        """Returns what is in force of a watched policy, all zero for nothing."""
        return self._read(WATCH_TURN, self._watches)

    def set_watch(self, row: NDArray[np.float64]) -> None:
        """Brings other numbers of a watched policy into force."""
        turn = self.whole[WATCH_TURN] + 1
        self._watches[turn & 1][:] = row
        self.whole[WATCH_TURN] = turn

    def _read(self, word: int, parts: tuple[Counts, Counts]) -> Counts:
        """Returns the part that is in force by a turn.

        A reader that is held up meanwhile, for as long as two turns take, is overtaken by what is
        written to the same part again; so it reads once more.
        """
        while True:
            turn = self.whole[word]
            found = parts[turn & 1].copy()
            if self.whole[word] == turn:
                return found

    def table(self) -> tuple[int, NDArray[np.int64], NDArray[np.float64]]:
        """Returns the turn of the table in force, its keys and its loads, which go on changing."""
        turn = self.whole[TABLE_TURN]
        table = self._tables[turn & 1]
        count = int(table[0])
        return turn, table[1 : 1 + count], self._loads(table, count)

    def next_table(self, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the loads of a table that is not in force, idle; `turn_table` brings it there."""
        table = self._tables[(self.whole[TABLE_TURN] + 1) & 1]
        count = len(keys)
        table[0] = count
        table[1 : 1 + count] = keys
        loads_LC = self._loads(table, count)
        loads_LC[:] = 0.0
        return loads_LC

    def turn_table(self) -> None:
        """Brings the table that was made last into force."""
        self.whole[TABLE_TURN] += 1

    def _loads(self, table: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        first = 1 + MOST_CANDIDATES
        return table[first : first + LOADS * count].view(np.float64).reshape(LOADS, count)


def candidate_keys(candidates: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
    """Returns a number for each (tier, endpoint), the same in every process."""
    digests = [
        hashlib.blake2b(f"{tier}\0{endpoint}".encode(), digest_size=_WORD_BYTES).digest()
        for tier, endpoint in candidates
    ]
    return np.frombuffer(b"".join(digests), dtype=np.int64)
