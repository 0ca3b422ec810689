"""The load on each candidate: the router's own, exact and at once, and the others' as last heard.

The system state is split by router, so that the own part is left out and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping

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
        self._others_are_idle = not any(self._others.in_flight_C)

    def current(self) -> LoadArrays:
        """Returns own plus others' load."""
        own = self._own()
        return own if self._others_are_idle else own.plus(self._others)

    def own_part(self) -> LoadArrays | None:
        """Returns the own part of what `current` returns; None if that is all of it."""
        return None if self._others_are_idle else self._own()

    def other_in_flight(self, row: int) -> float:
        """Returns the other routers' requests on a candidate."""
        return float(self._others.in_flight_C[row])

    def _own(self) -> LoadArrays:
        return self.ledger.load(self._fleet.row, self._fleet.candidate_count)
