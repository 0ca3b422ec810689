"""The load on each candidate: the router's own, exact and at once, and the others' as last heard.

The system state is split by router, so that the own part is left out and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from router.fleet import Fleet
from router.ledger import Ledger, LoadArrays, load_from_totals


class LoadView:
    """Own and other routers' load per candidate of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        """Starts empty."""
        self.ledger = Ledger()
        self.apply({}, fleet)

    def apply(
        self, other_totals: Mapping[tuple[str, str], tuple[float, float, float]], fleet: Fleet
    ) -> None:
        """Takes in the other routers' load; from now on loads are told per candidate of `fleet`."""
        self._fleet = fleet
        self._others = load_from_totals(other_totals, fleet.row, fleet.candidate_count)
        self._others_are_idle = not self._others.in_flight_C.any()

    def current(self) -> LoadArrays:
        """Returns own plus others' load."""
        own = self.ledger.load(self._fleet.row, self._fleet.candidate_count)
        return own if self._others_are_idle else own.plus(self._others)

    def own_part(self, load: LoadArrays) -> LoadArrays | None:
        """Returns the own part of what `current` returned; None if that is all of it."""
        if self._others_are_idle:
            return None
        pairs = zip(load, self._others, strict=True)
        return LoadArrays(*(seen_C - others_C for seen_C, others_C in pairs))

    def other_in_flight(self) -> NDArray[np.float64]:
        """Returns the other routers' requests per candidate."""
        return self._others.in_flight_C
