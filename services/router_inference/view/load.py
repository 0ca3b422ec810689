"""The load on each candidate: the router's own, exact and at once, and the others' as last heard.

The others' load comes without the own part, so that nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from router.fleet import Fleet
from router.ledger import Ledger, LoadArrays
from services.router_inference.workers.siblings import NoSiblings


class LoadView:
    """Own and other routers' load per candidate of a fleet, a row for each field of `LoadArrays`.

    The arrays stay where they are, and are changed in place, until the fleet changes.

    Attributes:
        ledger: the requests of this process.
        candidates: tier and endpoint in the order of the fleet; the same tuple until it changes.
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
        self._heard: Sequence[tuple[str, str]] | None = None
        self._follow(fleet)
        self.forget(fleet)

    def apply(
        self, heard: Sequence[tuple[str, str]], others_LC: NDArray[np.float64], fleet: Fleet
    ) -> None:
        """Takes in the other routers' load; from now on loads are told per candidate of `fleet`.

        Args:
            heard: the candidates of `others_LC`; the same object as long as nothing changes.
            others_LC: the load on them, a row for each field of `LoadArrays`.
            fleet: the fleet; candidates that it does not have are left out.
        """
        self._follow(fleet)
        if heard is not self._heard:
            self._heard = heard
            rows_C = np.array([fleet.row.get(name, -1) for name in heard], np.intp)
            self._heard_rows_C = np.flatnonzero(rows_C >= 0)
            self._rows_C = rows_C[self._heard_rows_C]
        self.heard_LC = np.zeros_like(self.others_LC)
        self.heard_LC[:, self._rows_C] = others_LC[:, self._heard_rows_C]
        self.others_LC[:] = self.heard_LC

    def forget(self, fleet: Fleet) -> None:
        """Goes on without the others' load, until the next `apply`."""
        self._follow(fleet)
        self.heard_LC = np.zeros_like(self.others_LC)
        self.others_LC[:] = 0.0

    def _follow(self, fleet: Fleet) -> None:
        if fleet is self._fleet:
            return
        self._fleet = fleet
        self.candidates = tuple(fleet.row)
        self._heard = None
        shape = (len(LoadArrays._fields), fleet.candidate_count)
        self.own_LC = np.zeros(shape)
        self.others_LC = np.zeros(shape)
        self.seen_LC = np.zeros(shape)
        self._process_LC = self._siblings.own_load(self.candidates)
        if self._siblings.is_alone:
            self.own_LC = self._process_LC
        self.ledger.move(fleet.row, self._process_LC)
        self._siblings.publish_load()

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
        loads = zip(self.candidates, zip(*self.own(), strict=True), strict=True)
        return {**self.ledger.left(), **{name: load for name, load in loads if load[0]}}

    def other_in_flight(self, row: int) -> float:
        """Returns the other routers' requests on a candidate."""
        return float(self.others_LC[0, row])
