"""Greedy by the prior: the largest tier whose latency by the profile alone fits; sees no load.

Fails: wherever load matters. It gives every request of one length and one deadline the same tier,
so it is a static policy in calm and in a burst.
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
    Parameter("margin", 0.8, 0.02, 1.0, "Share of the slack a latency may use."),
    Parameter("typical_batch", 0.25, 0.0, 1.0, "Assumed batch / largest batch."),
)


def score(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    s: Scratch,
) -> None:
    """The largest tier whose latency by the profile alone fits the slack. No live load.

    The prior of a tier is the latency of this request in a batch of typical size on a device that
    does nothing else: overhead + prompt + tokens x (step + per_sequence x batch). Endpoints of the
    tier are told apart by their backlog, as for the static policies. Parameters: 0 the margin on
    the slack, 1 the typical batch as a share of the largest one.
    """
    limit_s = params_P[0] * query.slack_s
    tier = fleet.tier_C[scores.extreme_candidate(fleet, False)]
    for c in range(len(fleet.tier_C)):
        batch = max(1.0, params_P[1] * fleet.max_batch_C[c])
        prior_s = fleet.overhead_s_C[c] + query.prompt_tokens * fleet.per_prompt_token_s_C[c]
        cycle_s = fleet.step_s_C[c] + fleet.per_sequence_s_C[c] * batch
        prior_s += query.event_tokens * cycle_s
        prior_s -= kernels.granted_s(cycle_s, query.event_tokens, query.token_interval_s)
        if prior_s <= limit_s and allowed_C[c] and fleet.tier_C[c] > tier:
            tier = fleet.tier_C[c]
    scores.prefer_tier(fleet, tier, s)
