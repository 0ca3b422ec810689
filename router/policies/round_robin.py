"""Round robin: the allowed candidates in turn, tiers and endpoints alike.

Parameters: none. Fails like random: one request in T goes to the large tier whatever the load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays
    from router.policies.scores import Query, Scratch

FIRST = (-1.0,)
"""Memory at the start: before the first candidate."""


def score(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    s: Scratch,
) -> None:
    """The next allowed candidate after the last one. Parameters: 0 the last row, moved on here."""
    count = len(fleet.tier_C)
    last = int(params_P[0])
    taken = -1
    for c in range(count):
        s.score_C[c] = -((c - last - 1) % count)
        if allowed_C[c] and (taken < 0 or s.score_C[c] > s.score_C[taken]):
            taken = c
    params_P[0] = taken
