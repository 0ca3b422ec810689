"""Which decisions were taken in for good, so that a record that comes again teaches nothing twice.

Exact, and small: a router numbers its decisions without gaps, so what was taken in of a process is
a few runs of numbers. A number far ahead is a run of its own and hides nothing in between, and
another epoch is another process.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from trainer.learning.online.joining import DecisionKey

_MOST_PROCESSES = 1_000
_MOST_RUNS = 1_000


class SettledKeys:
    """A set of decision keys, of bounded size: what is forgotten first is what is least."""

    def __init__(self, keys: Iterable[DecisionKey] = ()) -> None:
        """Starts with some keys."""
        # Per process the first and the last number of each run, rising.
        self._runs: dict[tuple[str, int], tuple[list[int], list[int]]] = {}
        for key in keys:
            self.add(key)

    def __contains__(self, key: DecisionKey) -> bool:
        """Returns whether a key was added."""
        first, last = self._runs.get(key[:2], ([], []))
        at = bisect_right(first, key[2]) - 1
        return at >= 0 and last[at] >= key[2]

    def add(self, key: DecisionKey) -> None:
        """Adds a key."""
        if key in self:
            return
        process, number = key[:2], key[2]
        first, last = self._runs.pop(process, ([], []))
        self._runs[process] = first, last  # the newest process stands last
        at = bisect_right(first, number)
        joins_left = at > 0 and last[at - 1] == number - 1
        joins_right = at < len(first) and first[at] == number + 1
        if joins_left and joins_right:
            last[at - 1] = last.pop(at)
            del first[at]
        elif joins_left:
            last[at - 1] = number
        elif joins_right:
            first[at] = number
        else:
            first.insert(at, number)
            last.insert(at, number)
        if len(first) > _MOST_RUNS:
            shortest = min(range(len(first)), key=lambda run: last[run] - first[run])
            del first[shortest], last[shortest]
        if len(self._runs) > _MOST_PROCESSES:
            del self._runs[next(iter(self._runs))]

    @property
    def missing_count(self) -> int:
        """Numbers that are not there though a higher one of their process is.

        A router numbers its decisions from 1 without gaps, so these are decisions that never came,
        of the processes that are not forgotten.
        """
        return sum(last[-1] - _size(first, last) for first, last in self._runs.values())

    def copy(self) -> SettledKeys:
        """Returns a set of its own with the same keys."""
        twin = SettledKeys()
        twin._runs = {process: (list(a), list(b)) for process, (a, b) in self._runs.items()}
        return twin

    def get_state(self) -> list[Any]:
        """Returns everything as JSON values."""
        return [[*process, first, last] for process, (first, last) in self._runs.items()]

    def set_state(self, state: Iterable[Any]) -> None:
        """Restores what `get_state` returned; raises TypeError or ValueError for anything else."""
        runs = {}
        for router, epoch, first, last in state:
            if type(epoch) is not int:
                raise ValueError(f"settled keys: epoch {epoch!r:.40} is no whole number")
            runs[str(router), epoch] = _checked(first, last)
        self._runs = runs


def _size(first: Sequence[int], last: Sequence[int]) -> int:
    return sum(last) - sum(first) + len(first)


def _checked(first: Sequence[Any], last: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Returns the bounds of one process's runs; raises ValueError if they are none."""
    bounds = [bound for run in zip(first, last, strict=True) for bound in run]
    if not all(type(bound) is int for bound in bounds):
        raise ValueError("settled keys: a bound of a run is no whole number")
    # Within a run the bounds may be equal, from one run to the next they rise.
    if any(b < a or (b == a and i % 2) for i, (a, b) in enumerate(itertools.pairwise(bounds))):
        raise ValueError("settled keys: runs do not rise")
    return list(first), list(last)
