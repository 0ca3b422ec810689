"""Random: a candidate drawn uniformly among the allowed ones.

Parameters: none. Fails: at any load, by quality in calm and by lateness in a burst; it is the floor
a policy must beat. Every decision states its probability.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays
    from router.policies.scores import Query, Scratch


def score(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    s: Scratch,
) -> None:
    """Every allowed candidate with equal probability; `query.draw` decides. No parameters."""
    count = 0
    for c in range(len(fleet.tier_C)):
        if allowed_C[c]:
            count += 1
    left = int(query.draw * count)
    for c in range(len(fleet.tier_C)):
        s.score_C[c] = 0.0
        if allowed_C[c]:
            if left == 0:
                s.score_C[c] = 1.0
            left -= 1
