"""SlackFit: the largest tier whose profiled (tier, batch) latency fits the slack (SuperServe).

Fails: where tiers share a device, since it knows each tier's own queue only.
"""

from __future__ import annotations

import math
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

PARAMETERS = (Parameter("margin", 0.8, 0.05, 2.0, "Share of the slack a latency may use."),)


def score(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    s: Scratch,
) -> None:
    """The slowest tier whose (tier, batch) latency fits the slack, after the tier's own queue.

    After SuperServe's SlackFit, where the largest model whose batch still fits the slack of the
    most urgent request runs next, on a worker that is free: latencies per tier and batch come from
    the profile alone, the batch is the endpoint's own queue and this request, and inside a tier
    the endpoint of the lowest latency is taken. Tiers that share the device are not seen.
    Parameters: 0 the margin on the slack.
    """
    limit_s = params_P[0] * query.slack_s
    for c in range(len(fleet.tier_C)):
        batch = load.in_flight_C[c] + 1.0
        rounds = math.ceil(batch / fleet.max_batch_C[c])
        batch = min(batch, fleet.max_batch_C[c])
        step_s = fleet.step_s_C[c] + fleet.per_sequence_s_C[c] * batch
        latency_s = fleet.overhead_s_C[c] + rounds * query.event_tokens * step_s
        latency_s -= kernels.granted_s(step_s, query.event_tokens, query.token_interval_s)
        prompts = query.prompt_tokens + load.waiting_prompt_tokens_C[c]
        latency_s += prompts * fleet.per_prompt_token_s_C[c]
        if latency_s <= limit_s:
            s.score_C[c] = 2.0 * fleet.tier_C[c] + 2.0 - latency_s / limit_s
        else:
            s.score_C[c] = -min(latency_s, scores.HUGE)
