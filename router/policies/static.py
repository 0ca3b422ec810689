"""Static: every request to one tier, on the endpoint whose device has the least work.

Parameters: none; the tier is in the name. Fails: a large tier under a burst (every answer is late),
a small one in calm (quality given away for nothing).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.policies import scores

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
    """One tier first, then the next lower, then the next higher. Parameters: 0 the tier's index."""
    scores.prefer_tier(fleet, params_P[0], s)
