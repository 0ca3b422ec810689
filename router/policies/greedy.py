"""Greedy: the highest quality whose predicted latency fits the slack, else the fastest candidate.

Fails: under sustained overload. Each choice looks affordable by itself and slows everybody else, so
it lives at the edge of the deadline and falls over it; it pays for no harm it does to others. A
margin tuned to hold every load (0.077) is so small that it gives quality away in calm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.policies import scores
from router.policies.base import Parameter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays
    from router.policies.scores import Query, Scratch

PARAMETERS = (Parameter("margin", 0.8, 0.05, 2.0, "Share of the slack predictions may use."),)


def score(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    s: Scratch,
) -> None:
    """Highest quality predicted within the margin, else the fastest. Parameters: 0 the margin."""
    limit_s = params_P[0] * query.slack_s
    for c in range(len(fleet.tier_C)):
        if s.predicted_s_C[c] <= limit_s:
            # Among equal qualities the faster one; the term stays below any real gap in quality.
            quality = fleet.quality_KC[query.task][c]
            s.score_C[c] = 1.0 + quality - 1e-6 * s.predicted_s_C[c] / limit_s
        else:
            s.score_C[c] = -min(s.predicted_s_C[c], scores.HUGE)
