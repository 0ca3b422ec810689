"""The load on each candidate: the router's own, exact and at once, and the others' as last heard.

The system state is split by router, so that the own part is left out and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from router.fleet import Fleet
from router.ledger import Ledger, LoadArrays


class LoadView:
    """Own and other routers' load per candidate of a fleet, a row for each field of `LoadArrays`.

    The arrays stay where they are, and are changed in place, until the fleet changes.

    Attributes:
        ledger: the own requests.
        own_LC: their load.
        others_LC: the other routers' load.
        seen_LC: the sum of both at the last decision or call of `current`.
        heard_LC: what is in `others_LC`; replaced with every state, never changed, so that a
            decision may keep it.
    """

    def __init__(self, fleet: Fleet) -> None:
        """Starts empty."""
        self.ledger = Ledger()
        self._fleet: Fleet | None = None
        self.apply({}, fleet)

    def apply(
        self, other_totals: Mapping[tuple[str, str], tuple[float, float, float]], fleet: Fleet
    ) -> None:
        """Takes in the other routers' load; from now on loads are told per candidate of `fleet`."""
        shape = (len(LoadArrays._fields), fleet.candidate_count)
        if fleet is not self._fleet:
            self._fleet = fleet
            self.own_LC, self.others_LC, self.seen_LC = (np.zeros(shape) for _ in range(3))
            self.ledger.move(fleet.row, self.own_LC)
        self.heard_LC = np.zeros(shape)
        for candidate, total in other_totals.items():
            row = fleet.row.get(candidate)
            if row is not None:
                self.heard_LC[:, row] += total
        self.others_LC[:] = self.heard_LC

    def current(self) -> LoadArrays:
        """Returns own plus others' load, in arrays that the next call changes."""
        return LoadArrays(*np.add(self.own_LC, self.others_LC, out=self.seen_LC))

    def own(self) -> LoadArrays:
        """Returns the own part of it, in the arrays that the ledger changes."""
        return LoadArrays(*self.own_LC)

    def other_in_flight(self, row: int) -> float:
        """Returns the other routers' requests on a candidate."""
        return float(self.others_LC[0, row])
