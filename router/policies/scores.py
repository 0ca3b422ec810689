"""Score kernels of the policies: one score per candidate, the highest allowed one is chosen.

Plain functions in the manner of `router.kernels`: live policies call them on lists, the simulator
compiles them. All share one signature, so that a policy is a kernel and a vector of parameters:

    score_X(fleet, load, allowed_C, query, params_P, predicted_s_C, probability_C, work_s_C, out_C)

`out_C` gets the scores; `predicted_s_C`, `probability_C` and `work_s_C` (backlog of the candidate's
device) are filled by those kernels that use them. Candidates that are not allowed may get any
score: the choice skips them.

Shape letters: K tasks, C candidates, P parameters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from router import kernels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays

HUGE = 1e9
"""Distance between scores of candidates of which one must always win over the other."""


class Query(NamedTuple):
    """A request and the traffic as scalars, in the order the compiled path builds them.

    Attributes:
        task: index of the task.
        slack_s: time left, seconds.
        prompt_tokens: of this request.
        output_tokens: predicted, of this request.
        event_tokens: tokens until the deadline's event (1 for a first-token deadline).
        soft_decay_s: e-folding time of a soft reward, seconds; 0 = hard.
        mean_prompt_tokens: of recent requests; 0 = unknown.
        rate_short_rps: arrivals per second over about 0.2 s.
        rate_long_rps: same over about 10 s.
        state_age_s: age of the newest system state, seconds.
        draw: uniform random number in [0, 1), for policies that randomise.
        own_share: share of the traffic that comes through this router, (0, 1].
        own_rate_rps: arrivals per second at this router over about 0.2 s; 0 = not told apart.
        burstiness: squared coefficient of variation of recent gaps between arrivals, 1 = Poisson.
        slowdown: how much slower answers came lately than predicted, 1 or more.
    """

    task: int
    slack_s: float
    prompt_tokens: float
    output_tokens: float
    event_tokens: float
    soft_decay_s: float
    mean_prompt_tokens: float
    rate_short_rps: float
    rate_long_rps: float
    state_age_s: float
    draw: float
    own_share: float = 1.0
    own_rate_rps: float = 0.0
    burstiness: float = 1.0
    slowdown: float = 1.0


def usable_device_count(fleet: FleetArrays) -> int:
    """Returns the number of devices with at least one usable candidate, at least 1."""
    count = 0
    for c in range(len(fleet.tier_C)):
        if kernels.is_first_usable(fleet, c):
            count += 1
    return max(1, count)


def extreme_candidate(fleet: FleetArrays, largest: bool) -> int:
    """Returns the first usable candidate of the largest (or smallest) tier, 0 if none is usable."""
    best = -1
    for c in range(len(fleet.tier_C)):
        if fleet.availability_C[c] <= 0.0:
            continue
        above = 0
        if best >= 0:
            above = fleet.tier_C[c] - fleet.tier_C[best]
        if best < 0 or (above > 0 if largest else above < 0):
            best = c
    return max(0, best)


def mean_prompt(query: Query) -> float:
    """Returns the mean prompt length, this request's where the mean is unknown."""
    if query.mean_prompt_tokens > 0.0:
        return query.mean_prompt_tokens
    return query.prompt_tokens


def ladder_load(fleet: FleetArrays, query: Query, rate_rps: float) -> float:
    """Returns where the offered load stands between the tiers' capacities.

    0 = all devices would be just full if the largest tier took every request in full batches, 1 =
    if the smallest did; logarithmic between and beyond, limited to [-2, 2]. Free of the fleet's
    size, of absolute time and of the ladder's width.
    """
    large = extreme_candidate(fleet, True)
    small = extreme_candidate(fleet, False)
    prompt = mean_prompt(query)
    large_s = kernels.full_batch_time_s(fleet, large, prompt, query.output_tokens)
    small_s = kernels.full_batch_time_s(fleet, small, prompt, query.output_tokens)
    load = rate_rps * large_s / usable_device_count(fleet)
    if load <= 0.0:
        return -2.0
    width = math.log(max(large_s / small_s, 1.5))
    return max(-2.0, min(2.0, math.log(load) / width))


def reward_share(probability: float, predicted_s: float, slack_s: float, decay_s: float) -> float:
    """Returns the expected share of the quality that is rewarded.

    Hard deadline: the probability of making it. Soft: a late answer still earns the decay at its
    predicted lateness.
    """
    if decay_s <= 0.0:
        return probability
    late_s = max(0.0, predicted_s - slack_s)
    return probability + (1.0 - probability) * math.exp(-min(late_s / decay_s, 50.0))


def explain(
    fleet: FleetArrays,
    load: LoadArrays,
    query: Query,
    bias: float,
    sharpness: float,
    predicted_s_C: NDArray[np.float64],
    probability_C: NDArray[np.float64],
    work_s_C: NDArray[np.float64],
) -> None:
    """Fills what every decision states: predicted latency, P(on time), device backlog."""
    kernels.predict_latency_s(
        fleet,
        load,
        query.prompt_tokens,
        query.event_tokens,
        predicted_s_C,
        query.mean_prompt_tokens,
    )
    kernels.on_time_probability(predicted_s_C, query.slack_s, bias, sharpness, probability_C)
    kernels.device_backlog_s(fleet, load, work_s_C)


def prefer_tier(
    fleet: FleetArrays, tier: float, work_s_C: NDArray[np.float64], out_C: NDArray[np.float64]
) -> None:
    """Scores `tier` first, then lower tiers, then higher ones; inside a tier the least backlog."""
    for c in range(len(fleet.tier_C)):
        distance = tier - fleet.tier_C[c]
        if distance < 0.0:
            distance = 1000.0 - distance
        out_C[c] = -HUGE * distance - min(work_s_C[c], HUGE)


def score_static(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    predicted_s_C: NDArray[np.float64],
    probability_C: NDArray[np.float64],
    work_s_C: NDArray[np.float64],
    out_C: NDArray[np.float64],
) -> None:
    """One tier always. Parameters: 0 the tier's index."""
    kernels.device_backlog_s(fleet, load, work_s_C)
    prefer_tier(fleet, params_P[0], work_s_C, out_C)


def score_random(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    predicted_s_C: NDArray[np.float64],
    probability_C: NDArray[np.float64],
    work_s_C: NDArray[np.float64],
    out_C: NDArray[np.float64],
) -> None:
    """Every allowed candidate with equal probability; `query.draw` decides. No parameters."""
    explain(fleet, load, query, 1.0, 8.0, predicted_s_C, probability_C, work_s_C)
    count = 0
    for c in range(len(fleet.tier_C)):
        if allowed_C[c]:
            count += 1
    left = int(query.draw * count)
    for c in range(len(fleet.tier_C)):
        out_C[c] = 0.0
        if allowed_C[c]:
            if left == 0:
                out_C[c] = 1.0
            left -= 1


def score_round_robin(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    predicted_s_C: NDArray[np.float64],
    probability_C: NDArray[np.float64],
    work_s_C: NDArray[np.float64],
    out_C: NDArray[np.float64],
) -> None:
    """The next allowed candidate after the last one. Parameters: 0 the last row (-1 at first)."""
    explain(fleet, load, query, 1.0, 8.0, predicted_s_C, probability_C, work_s_C)
    count = len(fleet.tier_C)
    for c in range(count):
        out_C[c] = -((c - int(params_P[0]) - 1) % count)


def score_greedy(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    predicted_s_C: NDArray[np.float64],
    probability_C: NDArray[np.float64],
    work_s_C: NDArray[np.float64],
    out_C: NDArray[np.float64],
) -> None:
    """Highest quality predicted within the margin, else the fastest. Parameters: 0 the margin."""
    explain(fleet, load, query, 1.0, 8.0, predicted_s_C, probability_C, work_s_C)
    limit_s = params_P[0] * query.slack_s
    for c in range(len(fleet.tier_C)):
        if predicted_s_C[c] <= limit_s:
            # Among equal qualities the faster one; the term stays below any real gap in quality.
            out_C[c] = 1.0 + fleet.quality_KC[query.task][c] - 1e-6 * predicted_s_C[c] / limit_s
        else:
            out_C[c] = -min(predicted_s_C[c], HUGE)


def score_price(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    predicted_s_C: NDArray[np.float64],
    probability_C: NDArray[np.float64],
    work_s_C: NDArray[np.float64],
    out_C: NDArray[np.float64],
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
    explain(fleet, load, query, params_P[6], params_P[7], predicted_s_C, probability_C, work_s_C)
    y = ladder_load(fleet, query, query.rate_short_rps)
    level = params_P[0] + params_P[2] * y + params_P[3] * y * y
    for c in range(len(fleet.tier_C)):
        out_C[c] = 0.0
    charge(
        fleet,
        load,
        query,
        level,
        params_P[1],
        params_P[4],
        params_P[5],
        predicted_s_C,
        probability_C,
        work_s_C,
        out_C,
    )


def charge(
    fleet: FleetArrays,
    load: LoadArrays,
    query: Query,
    level: float,
    slope: float,
    step_share: float,
    foresight: float,
    predicted_s_C: NDArray[np.float64],
    probability_C: NDArray[np.float64],
    work_s_C: NDArray[np.float64],
    out_C: NDArray[np.float64],
) -> None:
    """Adds quality x P(on time) - exp(level + slope x backlog / slack) x device time to `out_C`.

    `step_share` is the share of a step that is charged, `foresight` the share of the traffic to
    come within one slack that is taken as sharing it; see `score_price`.
    """
    large = extreme_candidate(fleet, True)
    unit_s = kernels.full_batch_time_s(fleet, large, mean_prompt(query), query.output_tokens)
    slack = max(query.slack_s, 1e-4)
    to_come = foresight * query.rate_short_rps * slack / usable_device_count(fleet)
    quality_C = fleet.quality_KC[query.task]
    for c in range(len(fleet.tier_C)):
        batch = min(load.in_flight_C[c] + 1.0 + to_come, fleet.max_batch_C[c])
        token_s = fleet.per_sequence_s_C[c] + step_share * fleet.step_s_C[c] / batch
        time_s = query.prompt_tokens * fleet.per_prompt_token_s_C[c] + query.output_tokens * token_s
        x = min(work_s_C[c] / slack, 3.0)
        price = math.exp(max(-20.0, min(20.0, level + slope * x)))
        share = reward_share(probability_C[c], predicted_s_C[c], query.slack_s, query.soft_decay_s)
        # The last term only decides among candidates that are all hopeless or all free.
        hopeless = 1e-7 * min(predicted_s_C[c] / slack, HUGE)
        out_C[c] += quality_C[c] * share - price * time_s / unit_s - hopeless
