"""The ledger: what this router has outstanding, exactly and at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from numpy.typing import NDArray


class LoadArrays(NamedTuple):
    """Load per candidate; loads of several routers add up.

    Attributes:
        in_flight_C: requests dispatched and unfinished.
        waiting_prompt_tokens_C: prompt tokens of those without a token yet.
        remaining_output_tokens_C: predicted output tokens still to come.
    """

    in_flight_C: NDArray[np.float64]
    waiting_prompt_tokens_C: NDArray[np.float64]
    remaining_output_tokens_C: NDArray[np.float64]


def zero_load(candidate_count: int) -> LoadArrays:
    """Returns an idle load, each array float64 [candidate_count]."""
    return LoadArrays(*(np.zeros(candidate_count) for _ in range(3)))


@dataclass(slots=True)
class _Entry:
    """A request under way; `row` is its candidate's, or ~row of one that left the fleet."""

    candidate: tuple[str, str]
    row: int
    prompt_tokens: float
    remaining_tokens: float
    waiting: bool


class Ledger:
    """Counts own requests per candidate, in place in the arrays that decisions read.

    It counts by name, so that it survives changes of the fleet: `move` takes the counts to another
    fleet's rows, and what is under way on candidates that left is counted beside until it ends.

    Not thread-safe: one event loop owns it.
    """

    def __init__(self) -> None:
        """Starts empty, without a candidate."""
        self._entries: dict[Hashable, _Entry] = {}
        self.move({}, np.zeros((3, 0)))

    def __len__(self) -> int:
        """Returns the number of requests dispatched and unfinished."""
        return len(self._entries)

    def move(self, row: Mapping[tuple[str, str], int], own_LC: NDArray[np.float64]) -> None:
        """Counts in another array from now on.

        Args:
            row: of each candidate (tier, endpoint) that has one.
            own_LC: float64, C-contiguous, a row for each field of `LoadArrays`; overwritten.
        """
        own_LC[:] = 0.0
        self._row = row
        # Plain Python reads and writes a number of a memoryview twice as fast as one of an array.
        self._counts: tuple[Any, ...] = tuple(map(memoryview, own_LC))
        self._left: dict[tuple[str, str], int] = {}
        self._left_counts: tuple[Any, ...] = ([], [], [])
        for entry in self._entries.values():
            entry.row = self._place(entry.candidate)
            self._add(entry)

    def dispatch(
        self, key: Hashable, candidate: tuple[str, str], prompt_tokens: float, output_tokens: float
    ) -> None:
        """Counts a request on (tier, endpoint); raises KeyError if `key` is already counted."""
        if key in self._entries:
            raise KeyError(f"request {key!r} is already in the ledger")
        row = self._row.get(candidate)
        if row is None:
            row = self._place(candidate)
        entry = self._entries[key] = _Entry(candidate, row, prompt_tokens, output_tokens, True)
        self._add(entry)

    def progress(self, key: Hashable, token_count: int) -> None:
        """Counts tokens that came; the first ends the prompt's wait. Closed keys are ignored."""
        entry = self._entries.get(key)
        if entry is None:
            return
        row, counts = entry.row, self._counts
        if row < 0:
            row, counts = ~row, self._left_counts
        if entry.waiting:
            entry.waiting = False
            counts[1][row] -= entry.prompt_tokens
        # One token stays due until the request ends: too short a prediction must not read as idle.
        left = max(1.0, entry.remaining_tokens - token_count)
        counts[2][row] += left - entry.remaining_tokens
        entry.remaining_tokens = left

    def finish(self, key: Hashable) -> bool:
        """Takes a request out; returns False if it was not (or no longer) there."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        row, (in_flight, waiting, remaining) = entry.row, self._counts
        if row < 0:
            row, (in_flight, waiting, remaining) = ~row, self._left_counts
        in_flight[row] -= 1.0
        if in_flight[row] == 0.0:  # exactly idle, whatever rounding left
            waiting[row] = remaining[row] = 0.0
            return True
        if entry.waiting:
            waiting[row] -= entry.prompt_tokens
        remaining[row] -= entry.remaining_tokens
        return True

    def totals(self) -> Mapping[tuple[str, str], tuple[float, float, float]]:
        """Returns in-flight count, waiting prompt and remaining output tokens where there are any.

        Candidates that left the fleet are among them.
        """
        return {**_where_any(self._row, self._counts), **self.left()}

    def left(self) -> Mapping[tuple[str, str], tuple[float, float, float]]:
        """Returns the same of the candidates that left the fleet."""
        return _where_any(self._left, self._left_counts)

    def _place(self, candidate: tuple[str, str]) -> int:
        """Returns a candidate's row, or ~row beside the fleet, made where it is missing."""
        row = self._row.get(candidate)
        if row is not None:
            return row
        left = self._left.get(candidate)
        if left is None:
            left = self._left[candidate] = len(self._left)
            for part in self._left_counts:
                part.append(0.0)
        return ~left

    def _add(self, entry: _Entry) -> None:
        row, counts = entry.row, self._counts
        if row < 0:
            row, counts = ~row, self._left_counts
        counts[0][row] += 1.0
        if entry.waiting:
            counts[1][row] += entry.prompt_tokens
        counts[2][row] += entry.remaining_tokens


def _where_any(
    rows: Mapping[tuple[str, str], int], counts: tuple[Any, ...]
) -> dict[tuple[str, str], tuple[float, float, float]]:
    return {
        candidate: (counts[0][row], counts[1][row], counts[2][row])
        for candidate, row in rows.items()
        if counts[0][row]
    }
