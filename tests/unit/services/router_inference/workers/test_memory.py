"""Memory of several workers: what is in force is whole, and what a killed one left is taken out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.router_inference.workers.memory import (
    MOST_CANDIDATES,
    TABLE_TURN,
    TRIAL_WIDTH,
    WATCH_WIDTH,
    Memory,
    candidate_keys,
)

PAIR = (("small", "e0"), ("large", "e0"))


def test_a_table_counts_once_it_is_whole() -> None:
    """Until its turn, the one before is read."""
    block = Memory(worker_count=2, counts_width=1).blocks[0]
    block.next_table(candidate_keys(PAIR[:1]))[:] = 3.0
    block.turn_table()
    half_done_LC = block.next_table(candidate_keys(PAIR))
    half_done_LC[:] = 5.0
    _, keys, load_LC = block.table()
    assert keys.tolist() == candidate_keys(PAIR[:1]).tolist()
    assert load_LC.tolist() == [[3.0]] * 3
    block.turn_table()
    _, keys, load_LC = block.table()
    assert keys.tolist() == candidate_keys(PAIR).tolist()
    assert load_LC.tolist() == [[5.0, 5.0]] * 3


def test_a_new_table_is_idle() -> None:
    """What its place held two lists ago does not come back."""
    block = Memory(worker_count=1, counts_width=1).blocks[0]
    for _ in range(3):
        load_LC = block.next_table(candidate_keys(PAIR))
        assert not load_LC.any()
        load_LC[:] = 7.0
        block.turn_table()


def test_blocks_do_not_overlap() -> None:
    """Full tables and counts of every worker leave those of the others as they are."""
    memory = Memory(worker_count=3, counts_width=2)
    keys = np.arange(MOST_CANDIDATES, dtype=np.int64)
    for number, block in enumerate(memory.blocks, start=1):
        for _ in range(2):
            block.next_table(keys)[:] = number
            block.turn_table()
            block.set_counts(np.array([number, 10.0 * number]))
        block.set_trial(np.full(TRIAL_WIDTH, float(number)))
        block.set_watch(np.full(WATCH_WIDTH, float(number)))
        for shared in memory.hold:
            shared[number - 1] = number
    assert not memory.ended.counts().any()
    for number, block in enumerate(memory.blocks, start=1):
        _, found, load_LC = block.table()
        assert np.array_equal(found, keys)
        assert (load_LC == number).all()
        assert block.counts().tolist() == [number, 10.0 * number]
        assert (block.trial() == number).all()
        assert (block.watch() == number).all()
        assert all((shared[number - 1] == number).all() for shared in memory.hold)


def test_a_worker_that_ended_leaves_its_counts_and_no_load() -> None:
    """They move to those of the ended ones, as its end makes them."""
    memory = Memory(worker_count=2, counts_width=2)
    block = memory.blocks[1]
    block.next_table(candidate_keys(PAIR))[:] = 9.0
    block.turn_table()
    block.set_counts(np.array([4.0, 1.0]))
    block.set_trial(np.ones(TRIAL_WIDTH))
    block.set_watch(np.ones(WATCH_WIDTH))
    for _ in range(2):  # nothing moves twice
        memory.retire(2, lambda counts: counts * 2.0)
    assert block.table()[1].size == 0
    assert block.counts().tolist() == [0.0, 0.0]
    assert not block.trial().any()
    assert not block.watch().any()
    assert memory.ended.counts().tolist() == [8.0, 2.0]


class HeldUp:
    """A part of a block, whose first reader is held up in the middle while others write."""

    def __init__(self, part: NDArray[np.float64], meanwhile: Callable[[], None]) -> None:
        self.part, self.meanwhile = part, meanwhile

    def copy(self) -> NDArray[np.float64]:
        """Returns what it read."""
        found = self.part.copy()
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        found[1] = self.part[1]
        return found

    def __setitem__(self, at: slice, values: NDArray[np.float64]) -> None:
        self.part[at] = values


def test_what_is_overtaken_while_it_is_read_is_read_again() -> None:
    """All of it is of one moment, however long a reader is held up."""
    block: Any = Memory(worker_count=1, counts_width=2).blocks[0]

    def write() -> None:
        for value in (2.0, 3.0):
            block.set_counts(np.full(2, value))

    block.set_counts(np.full(2, 1.0))
    block._counts = tuple(HeldUp(part, write) for part in block._counts)
    assert block.counts().tolist() == [3.0, 3.0]


def test_a_fork_shares_the_memory() -> None:
    """What one process writes, the other one reads at once."""
    memory = Memory(worker_count=1, counts_width=1)
    pid = os.fork()
    if pid == 0:
        memory.blocks[0].next_table(candidate_keys(PAIR))[0, 1] = 2.0
        memory.blocks[0].turn_table()
        os._exit(0)
    os.waitpid(pid, 0)
    assert memory.blocks[0].whole[TABLE_TURN] == 1
    assert memory.blocks[0].table()[2][0].tolist() == [0.0, 2.0]


def test_keys_are_those_of_the_names() -> None:
    """They differ where tier or endpoint differ, and are the same in every process."""
    keys = candidate_keys([("a", "bc"), ("ab", "c"), ("a", "bc")])
    assert keys[0] == keys[2] != keys[1]
    assert candidate_keys([]).size == 0
