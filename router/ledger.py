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

    Compiled code and tests hold arrays. The live path holds plain lists from the ledger to the
    kernels, whose elements plain Python reads several times faster; no kernel minds.

    Attributes:
        in_flight_C: requests dispatched and unfinished.
        waiting_prompt_tokens_C: prompt tokens of those without a token yet.
        remaining_output_tokens_C: predicted output tokens still to come.
    """

    in_flight_C: NDArray[np.float64]
    waiting_prompt_tokens_C: NDArray[np.float64]
    remaining_output_tokens_C: NDArray[np.float64]

    def plus(self, other: LoadArrays) -> LoadArrays:
        """Returns the sum of two loads over the same candidates, in lists."""
        sums: tuple[Any, ...] = tuple(
            [mine + theirs for mine, theirs in zip(*pair, strict=True)]
            for pair in zip(self, other, strict=True)
        )
        return LoadArrays(*sums)


def zero_load(candidate_count: int) -> LoadArrays:
    """Returns an idle load, each array float64 [candidate_count]."""
    return LoadArrays(*(np.zeros(candidate_count) for _ in range(3)))


@dataclass(slots=True)
class _Entry:
    candidate: tuple[str, str]
    prompt_tokens: float
    remaining_tokens: float
    waiting: bool


class Ledger:
    """Counts own requests per (tier, endpoint), by name, so that it survives changes of the fleet.

    Not thread-safe: one event loop owns it.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self._entries: dict[Hashable, _Entry] = {}
        self._totals: dict[tuple[str, str], list[float]] = {}

    def __len__(self) -> int:
        """Returns the number of requests dispatched and unfinished."""
        return len(self._entries)

    def dispatch(
        self, key: Hashable, candidate: tuple[str, str], prompt_tokens: float, output_tokens: float
    ) -> None:
        """Counts a request on (tier, endpoint); raises KeyError if `key` is already counted."""
        if key in self._entries:
            raise KeyError(f"request {key!r} is already in the ledger")
        self._entries[key] = _Entry(candidate, prompt_tokens, output_tokens, True)
        total = self._totals.setdefault(candidate, [0.0, 0.0, 0.0])
        total[0] += 1.0
        total[1] += prompt_tokens
        total[2] += output_tokens

    def progress(self, key: Hashable, token_count: int) -> None:
        """Counts tokens that came; the first ends the prompt's wait. Closed keys are ignored."""
        entry = self._entries.get(key)
        if entry is None:
            return
        total = self._totals[entry.candidate]
        if entry.waiting:
            entry.waiting = False
            total[1] -= entry.prompt_tokens
        # One token stays due until the request ends: too short a prediction must not read as idle.
        left = max(1.0, entry.remaining_tokens - token_count)
        total[2] += left - entry.remaining_tokens
        entry.remaining_tokens = left

    def finish(self, key: Hashable) -> bool:
        """Takes a request out; returns False if it was not (or no longer) there."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        total = self._totals[entry.candidate]
        total[0] -= 1.0
        if entry.waiting:
            total[1] -= entry.prompt_tokens
        total[2] -= entry.remaining_tokens
        if total[0] == 0.0:
            del self._totals[entry.candidate]  # also drops rounding residue
        return True

    def totals(self) -> Mapping[tuple[str, str], tuple[float, float, float]]:
        """Returns in-flight count, waiting prompt and remaining output tokens per candidate."""
        return {candidate: (t[0], t[1], t[2]) for candidate, t in self._totals.items()}

    def load(self, row: Mapping[tuple[str, str], int], candidate_count: int) -> LoadArrays:
        """Returns the load on a fleet's candidates, without endpoints that left it."""
        return load_from_totals(self._totals, row, candidate_count)


def load_from_totals(
    totals: Mapping[tuple[str, str], tuple[float, float, float] | list[float]],
    row: Mapping[tuple[str, str], int],
    candidate_count: int,
) -> LoadArrays:
    """Returns totals by name as lists per candidate; unknown candidates are left out."""
    lists: tuple[Any, ...] = tuple([0.0] * candidate_count for _ in range(3))
    load = LoadArrays(*lists)
    in_flight_C, waiting_C, remaining_C = load
    for candidate, (in_flight, prompt_tokens, output_tokens) in totals.items():
        index = row.get(candidate)
        if index is not None:
            in_flight_C[index] += in_flight
            waiting_C[index] += prompt_tokens
            remaining_C[index] += output_tokens
    return load
