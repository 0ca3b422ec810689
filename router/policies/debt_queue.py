"""Debt queue: quality against device time by the device's backlog (drift plus penalty, Lyapunov).

Fails: it holds a standing backlog in proportion to `weight` even in steady load, and knows
deadlines only through the slack.
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
    Parameter("weight", 0.198, 1e-3, 5.0, "Worth of quality in units of backlog / slack."),
    Parameter("step_share", 0.116, 0.0, 1.0, "Share of a shared step that is charged."),
)


def score(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    s: Scratch,
) -> None:
    """Drift plus penalty (Lyapunov): V x quality - backlog/slack x device time.

    The debt of a device is its outstanding work over the slack. Parameters: 0 the weight V, 1 the
    share of a step that is charged.
    """
    kernels.request_device_time_s(
        fleet, load, query.prompt_tokens, query.output_tokens, params_P[1], s.score_C
    )
    large = scores.extreme_candidate(fleet, True)
    unit_s = kernels.full_batch_time_s(fleet, large, scores.mean_prompt(query), query.output_tokens)
    slack = max(query.slack_s, 1e-4)
    for c in range(len(fleet.tier_C)):
        debt = min(s.work_s_C[c] / slack, scores.HUGE)
        gain = params_P[0] * fleet.quality_KC[query.task][c]
        hopeless = 1e-7 * min(s.predicted_s_C[c] / slack, scores.HUGE)
        s.score_C[c] = gain - debt * s.score_C[c] / unit_s - hopeless
