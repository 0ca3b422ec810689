"""Price: quality x P(on time) - price x device time, over tiers and devices jointly.

The price of a device's time is exponential in its backlog (over the slack) and in a quadratic of
where the offered load stands between the tiers' capacities; see `score`. Every quantity is
relative, so one set of parameters serves fleets of other sizes, profiles and deadlines. The
parameters were tuned by CMA-ES in the simulator on the `opt-a100` profile, steady and bursty
(`python -m trainer.research.tuning price`).

Fails: with several routers without homes (`router.home`), which all herd to the device that looked
free; when the rate estimate lags by more than the backlog term makes up for;
and where the mix of tasks makes the price right for none of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from router.policies import scores
from router.policies.base import Parameter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays
    from router.policies.scores import Capacity, Query, Scratch

PARAMETERS = (
    Parameter("level", -4.636, -15.0, 5.0, "Log price of an idle device at ladder load 0."),
    Parameter("backlog", 9.379, 0.0, 40.0, "Slope in backlog / slack."),
    Parameter("load", 6.128, -5.0, 20.0, "Slope in the ladder load."),
    Parameter("load_square", -2.721, -12.0, 8.0, "Curvature in the ladder load."),
    Parameter("step_share", 0.772, 0.0, 1.0, "Share of a shared step that is charged."),
    Parameter("foresight", 0.413, 0.0, 1.0, "Share of traffic to come that shares a step."),
    Parameter("on_time_bias", 1.66, 0.2, 4.0, "Factor on predictions before P(on time)."),
    Parameter("on_time_sharpness", 4.176, 2.5, 60.0, "Sharpness of P(on time)."),
)


def score(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    s: Scratch,
) -> None:
    """Quality x P(on time) - price x device time, tier and device chosen jointly.

    The price of a device is exp(p0 + p1 x + p2 y + p3 y^2), with x its backlog / slack and y the
    ladder load; device time is counted in units of one large request in full batches. So neither
    fleet size nor absolute time enters. A tier's step is shared by the sequences that run beside
    the request, and by those to come: p5 of what the whole traffic would put there within one
    slack. Without that, the first request to an idle tier would pay for a step that those after it
    share, and nobody would ever be the first. Parameters: 0-3 as above, 4 the share of a step that
    is charged, 5 foresight, 6 and 7 bias and sharpness of P(on time).
    """
    scores.weigh_on_time(query, params_P[6], params_P[7], s)
    can = scores.capacity(fleet, query)
    y = scores.ladder_load(can, query.rate_short_rps)
    level = params_P[0] + params_P[2] * y + params_P[3] * y * y
    for c in range(len(fleet.tier_C)):
        s.score_C[c] = 0.0
    charge(fleet, load, query, can, level, params_P[1], params_P[4], params_P[5], s)


def charge(
    fleet: FleetArrays,
    load: LoadArrays,
    query: Query,
    can: Capacity,
    level: float,
    slope: float,
    step_share: float,
    foresight: float,
    s: Scratch,
) -> None:
    """Adds quality x P(on time) - exp(level + slope x backlog / slack) x device time to the scores.

    `step_share` is the share of a step that is charged, `foresight` the share of the traffic to
    come within one slack that is taken as sharing it; see `score`.
    """
    slack = max(query.slack_s, 1e-4)
    to_come = foresight * query.rate_short_rps * slack / can.device_count
    quality_C = fleet.quality_KC[query.task]
    for c in range(len(fleet.tier_C)):
        batch = min(load.in_flight_C[c] + 1.0 + to_come, fleet.max_batch_C[c])
        token_s = fleet.per_sequence_s_C[c] + step_share * fleet.step_s_C[c] / batch
        prompt_tokens = query.prompt_tokens - fleet.cached_C[c]
        time_s = prompt_tokens * fleet.per_prompt_token_s_C[c] + query.output_tokens * token_s
        x = min(s.work_s_C[c] / slack, 3.0)
        price = math.exp(max(-20.0, min(20.0, level + slope * x)))
        share = scores.reward_share(
            s.probability_C[c], s.predicted_s_C[c], query.slack_s, query.soft_decay_s
        )
        # The last term only decides among candidates that are all hopeless or all free.
        hopeless = 1e-7 * min(s.predicted_s_C[c] / slack, scores.HUGE)
        s.score_C[c] += quality_C[c] * share - price * time_s / can.large_s - hopeless
