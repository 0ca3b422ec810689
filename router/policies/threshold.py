"""Threshold: the largest tier that could carry the whole estimated rate in full batches.

Fails: between two tiers' capacities, where it serves all on the smaller one; in a burst, as long as
the estimate lags; on a lost or slow device it sees only the count of devices, not the backlog.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router import kernels
from router.policies import scores
from router.policies.base import Parameter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays
    from router.policies.scores import Query, Scratch

PARAMETERS = (
    Parameter("top_utilisation", 0.554, 0.01, 2.0, "Planned share of the largest tier."),
    Parameter("utilisation", 1.269, 0.01, 2.0, "Planned share of the tiers below it."),
)


def score(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    s: Scratch,
) -> None:
    """The largest tier that could carry the whole estimated rate in full batches.

    Parameters: 0 the share of the largest tier's capacity that is planned for, 1 that of every
    tier between it and the smallest. A ladder of three tiers so has both of its thresholds free.
    """
    devices = scores.usable_device_count(fleet)
    top = fleet.tier_C[scores.extreme_candidate(fleet, True)]
    tier = fleet.tier_C[scores.extreme_candidate(fleet, False)]
    for c in range(len(fleet.tier_C)):
        time_s = kernels.full_batch_time_s(fleet, c, scores.mean_prompt(query), query.output_tokens)
        share = params_P[1]
        if fleet.tier_C[c] == top:
            share = params_P[0]
        fits = query.rate_short_rps * time_s <= share * devices
        if fits and fleet.availability_C[c] > 0.0 and fleet.tier_C[c] > tier:
            tier = fleet.tier_C[c]
    scores.prefer_tier(fleet, tier, s)
