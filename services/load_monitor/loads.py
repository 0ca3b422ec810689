"""Load per candidate as arrays: the order in which it was told, and its place in another order.

Numbers are whole, of 64 bits: adding and taking away leaves no rounding behind, and what the most
routers may claim (10^5 times 10^12) stays within.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

Candidate = tuple[str, str]
"""Tier and endpoint."""
Loads = NDArray[np.int64]
"""[3, C]: requests in flight, waiting prompt tokens, remaining output tokens per candidate."""
Triple = tuple[int, int, int]
KINDS = 3
# Tags and lengths of an entry, its candidate and the names, and numbers at their limits.
_ENTRY_BYTES = 28


class _Way(NamedTuple):
    """From one order to another: what is known in both, there and here, and what is not."""

    source_C: NDArray[np.intp]
    target_C: NDArray[np.intp]
    missing_C: NDArray[np.intp]


class CandidateOrder:
    """An order of candidates, told from others by identity.

    Args:
        names: The candidates, each once.
    """

    def __init__(self, names: Iterable[Candidate] = ()) -> None:
        self.names = tuple(names)
        self._ways: WeakKeyDictionary[CandidateOrder, _Way] = WeakKeyDictionary()

    def __len__(self) -> int:
        """Returns the number of candidates."""
        return len(self.names)

    @functools.cached_property
    def row(self) -> Mapping[Candidate, int]:
        """Place of each candidate."""
        return {name: row for row, name in enumerate(self.names)}

    @functools.cached_property
    def entry_bytes_C(self) -> NDArray[np.int64]:
        """Most bytes that each takes where load is written by name."""
        return np.array([_entry_bytes(name) for name in self.names], np.int64)

    def way_to(self, order: CandidateOrder) -> _Way:
        """Returns where the candidates stand in another order."""
        way = self._ways.get(order)
        if way is None:
            target_C = np.array([order.row.get(name, -1) for name in self.names], np.intp)
            is_known_C = target_C >= 0
            source_C, missing_C = np.flatnonzero(is_known_C), np.flatnonzero(~is_known_C)
            way = self._ways[order] = _Way(source_C, target_C[source_C], missing_C)
        return way

    def same_or(self, known: CandidateOrder) -> CandidateOrder:
        """Returns `known` if it is the same order, to be told from it no longer."""
        return known if self.names == known.names else self


NO_ORDER = CandidateOrder()


@dataclass(frozen=True, eq=False)
class RouterLoads:
    """A router's load as it told it; never changed.

    Args:
        order: Of the candidates in `load_LC`.
        load_LC: Their load.
        beside: Load of candidates that are not in the order.
    """

    order: CandidateOrder
    load_LC: Loads
    beside: Mapping[Candidate, Triple]

    @classmethod
    def by_name(cls, loads: Mapping[Candidate, Triple]) -> RouterLoads:
        """Returns loads that were told by name."""
        return cls(NO_ORDER, np.zeros((KINDS, 0), np.int64), loads)

    def on(self, order: CandidateOrder) -> Loads:
        """Returns the load of the candidates of another order; what is not in it is left out."""
        if order is self.order and not self.beside:
            return self.load_LC
        load_LC = np.zeros((KINDS, len(order)), np.int64)
        if order is self.order:
            load_LC[:] = self.load_LC
        else:
            way = self.order.way_to(order)
            load_LC[:, way.target_C] = self.load_LC[:, way.source_C]
        for name, load in self.beside.items():
            row = order.row.get(name)
            if row is not None:
                load_LC[:, row] = load
        return load_LC

    def outside(self, order: CandidateOrder) -> dict[Candidate, Triple]:
        """Returns the load of what is not in another order, by name."""
        found = {name: load for name, load in self.beside.items() if name not in order.row}
        if order is not self.order:
            found |= self._named(self.order.way_to(order).missing_C)
        return found

    def named(self) -> dict[Candidate, Triple]:
        """Returns the load by name, where there is any."""
        return {**self._named(np.arange(len(self.order))), **self.beside}

    @functools.cached_property
    def most_bytes(self) -> int:
        """Most bytes that the load takes by name."""
        beside_bytes = sum(map(_entry_bytes, self.beside))
        return int(self.order.entry_bytes_C @ self.load_LC.any(axis=0)) + beside_bytes

    def _named(self, rows: NDArray[np.intp]) -> dict[Candidate, Triple]:
        used = rows[self.load_LC[:, rows].any(axis=0)]
        names = self.order.names
        loads = self.load_LC[:, used].T.tolist()
        return {names[row]: (a, b, c) for row, (a, b, c) in zip(used.tolist(), loads, strict=True)}


def _entry_bytes(name: Candidate) -> int:
    return len(name[0]) + len(name[1]) + _ENTRY_BYTES
