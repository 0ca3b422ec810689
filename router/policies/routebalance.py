"""RouteBalance: quality less weighted latency, queue and cost, tier and endpoint jointly.

After arXiv 2606.17949. Fails: the weights, against a weight of 1 for quality, are the same in calm
and in a burst, so that a setting which holds a burst gives quality away in calm; and it knows no
deadline but through the slack as a unit.
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
    Parameter("latency", 3.07, 0.0, 5.0, "Weight of predicted latency / slack."),
    Parameter("queue", 0.799, 0.0, 5.0, "Weight of the device's backlog / slack."),
    Parameter("cost", 1.772, 0.0, 2.0, "Weight of device time / the largest tier's."),
)


def score(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    s: Scratch,
) -> None:
    """Quality less fixed weights times latency, queue and cost, over all (tier, endpoint) pairs.

    After RouteBalance (arXiv 2606.17949), which assigns requests to instances by one weighted sum
    of quality, latency and cost; here latency is the predicted one over the slack, queue the
    device's backlog over the slack, cost the device time in full batches over the largest tier's.
    The weights do not move with the load: that is what sets it apart from the price policy.
    Parameters: 0 to 2 the weights of latency, queue and cost; quality has weight 1.
    """
    slack_s = max(query.slack_s, 1e-4)
    prompt = scores.mean_prompt(query)
    large = scores.extreme_candidate(fleet, True)
    unit_s = kernels.full_batch_time_s(fleet, large, prompt, query.output_tokens)
    for c in range(len(fleet.tier_C)):
        new_tokens = query.prompt_tokens - fleet.cached_C[c]
        time_s = kernels.full_batch_time_s(fleet, c, new_tokens, query.output_tokens)
        loss = params_P[0] * s.predicted_s_C[c] / slack_s
        loss += params_P[1] * s.work_s_C[c] / slack_s
        loss += params_P[2] * time_s / unit_s
        s.score_C[c] = fleet.quality_KC[query.task][c] - min(loss, scores.HUGE)
