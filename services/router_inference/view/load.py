"""The load on each candidate: the router's own, exact and at once, and the others' as last heard.

The system state is split by router, so that the own part is left out and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from router.fleet import Fleet
from router.ledger import Ledger, LoadArrays
from services.router_inference.workers.siblings import NoSiblings


class LoadView:
    """Own and other routers' load per candidate of a fleet, a row for each field of `LoadArrays`.

    The arrays stay where they are, and are changed in place, until the fleet changes.

    Attributes:
        ledger: the requests of this process.
        own_LC: the load of the router: theirs and, as of the last `refresh`, the siblings'.
        others_LC: the other routers' load.
        seen_LC: the sum of both at the last decision or call of `current`.
        heard_LC: what is in `others_LC`; replaced with every state, never changed, so that a
            decision may keep it.
    """

    def __init__(self, fleet: Fleet, siblings: NoSiblings) -> None:
        """Starts empty."""
        self.ledger = Ledger()
        self._siblings = siblings
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
            self._process_LC = self._siblings.own_load(list(fleet.row))
            if self._siblings.is_alone:
                self.own_LC = self._process_LC
            self.ledger.move(fleet.row, self._process_LC)
            self._siblings.publish_load()
        self.heard_LC = np.zeros(shape)
        for candidate, total in other_totals.items():
            row = fleet.row.get(candidate)
            if row is not None:
                self.heard_LC[:, row] += total
        self.others_LC[:] = self.heard_LC

    def refresh(self) -> None:
        """Brings the siblings' part of the own load up to date; look here before each decision."""
        if not self._siblings.is_alone:
            np.copyto(self.own_LC, self._process_LC)
            self._siblings.add_load(self.own_LC)

    def current(self) -> LoadArrays:
        """Returns own plus others' load, in arrays that the next call changes."""
        self.refresh()
        return LoadArrays(*np.add(self.own_LC, self.others_LC, out=self.seen_LC))

    def own(self) -> LoadArrays:
        """Returns the own part of it, in the arrays that are changed in place."""
        self.refresh()
        return LoadArrays(*self.own_LC)

    def totals(self) -> Mapping[tuple[str, str], tuple[float, float, float]]:
        """Returns the own load where there is any, by tier and endpoint.

        Candidates that left the fleet are among them as far as this process counts there.
        """
        totals = self.ledger.totals()
        if self._siblings.is_alone or self._fleet is None:
            return totals
        left = {name: load for name, load in totals.items() if name not in self._fleet.row}
        loads = zip(self._fleet.row, zip(*self.own(), strict=True), strict=True)
        return left | {name: load for name, load in loads if load[0]}

    def other_in_flight(self, row: int) -> float:
        """Returns the other routers' requests on a candidate."""
        return float(self.others_LC[0, row])
