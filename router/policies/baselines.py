"""Score kernels of the hand-made baselines; see `router.policies.scores` for their signature.

Rate threshold, latency-prior greedy, weighted score, SlackFit, debt queue, fluid program: plain
functions that live policies call on lists and that the simulator compiles.

Shape letters: K tasks, C candidates, P parameters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from router import kernels
from router.policies import scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays
    from router.policies.scores import Query


def score_threshold(
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
    """The largest tier that could carry the whole estimated rate in full batches.

    Parameters: 0 the share of the largest tier's capacity that is planned for, 1 that of every
    tier between it and the smallest. A ladder of three tiers so has both of its thresholds free.
    """
    scores.explain(fleet, load, query, 1.0, 8.0, predicted_s_C, probability_C, work_s_C)
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
    scores.prefer_tier(fleet, tier, work_s_C, out_C)


def score_greedy_prior(
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
    """The largest tier whose latency by the profile alone fits the slack. No live load.

    The prior of a tier is the latency of this request in a batch of typical size on a device that
    does nothing else: overhead + prompt + tokens x (step + per_sequence x batch). Endpoints of the
    tier are told apart by their backlog, as for the static policies. Parameters: 0 the margin on
    the slack, 1 the typical batch as a share of the largest one.
    """
    scores.explain(fleet, load, query, 1.0, 8.0, predicted_s_C, probability_C, work_s_C)
    limit_s = params_P[0] * query.slack_s
    tier = fleet.tier_C[scores.extreme_candidate(fleet, False)]
    for c in range(len(fleet.tier_C)):
        batch = max(1.0, params_P[1] * fleet.max_batch_C[c])
        prior_s = fleet.overhead_s_C[c] + query.prompt_tokens * fleet.per_prompt_token_s_C[c]
        prior_s += query.event_tokens * (fleet.step_s_C[c] + fleet.per_sequence_s_C[c] * batch)
        if prior_s <= limit_s and allowed_C[c] and fleet.tier_C[c] > tier:
            tier = fleet.tier_C[c]
    scores.prefer_tier(fleet, tier, work_s_C, out_C)


def score_routebalance(
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
    """Quality less fixed weights times latency, queue and cost, over all (tier, endpoint) pairs.

    After RouteBalance (arXiv 2606.17949), which assigns requests to instances by one weighted sum
    of quality, latency and cost; here latency is the predicted one over the slack, queue the
    device's backlog over the slack, cost the device time in full batches over the largest tier's.
    The weights do not move with the load: that is what sets it apart from the price policy.
    Parameters: 0 to 2 the weights of latency, queue and cost; quality has weight 1.
    """
    scores.explain(fleet, load, query, 1.0, 8.0, predicted_s_C, probability_C, work_s_C)
    slack_s = max(query.slack_s, 1e-4)
    prompt = scores.mean_prompt(query)
    large = scores.extreme_candidate(fleet, True)
    unit_s = kernels.full_batch_time_s(fleet, large, prompt, query.output_tokens)
    for c in range(len(fleet.tier_C)):
        time_s = kernels.full_batch_time_s(fleet, c, query.prompt_tokens, query.output_tokens)
        loss = params_P[0] * predicted_s_C[c] / slack_s
        loss += params_P[1] * work_s_C[c] / slack_s
        loss += params_P[2] * time_s / unit_s
        out_C[c] = fleet.quality_KC[query.task][c] - min(loss, scores.HUGE)


def score_slackfit(
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
    """The slowest tier whose (tier, batch) latency fits the slack, after the tier's own queue.

    After SuperServe's SlackFit, where the largest model whose batch still fits the slack of the
    most urgent request runs next, on a worker that is free: latencies per tier and batch come from
    the profile alone, the batch is the endpoint's own queue and this request, and inside a tier
    the endpoint of the lowest latency is taken. Tiers that share the device are not seen.
    Parameters: 0 the margin on the slack.
    """
    scores.explain(fleet, load, query, 1.0, 8.0, predicted_s_C, probability_C, work_s_C)
    limit_s = params_P[0] * query.slack_s
    for c in range(len(fleet.tier_C)):
        batch = load.in_flight_C[c] + 1.0
        rounds = math.ceil(batch / fleet.max_batch_C[c])
        batch = min(batch, fleet.max_batch_C[c])
        step_s = fleet.step_s_C[c] + fleet.per_sequence_s_C[c] * batch
        latency_s = fleet.overhead_s_C[c] + rounds * query.event_tokens * step_s
        prompts = query.prompt_tokens + load.waiting_prompt_tokens_C[c]
        latency_s += prompts * fleet.per_prompt_token_s_C[c]
        if latency_s <= limit_s:
            out_C[c] = 2.0 * fleet.tier_C[c] + 2.0 - latency_s / limit_s
        else:
            out_C[c] = -min(latency_s, scores.HUGE)


def score_debt_queue(
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
    """Drift plus penalty (Lyapunov): V x quality - backlog/slack x device time.

    The debt of a device is its outstanding work over the slack. Parameters: 0 the weight V, 1 the
    share of a step that is charged.
    """
    scores.explain(fleet, load, query, 1.0, 8.0, predicted_s_C, probability_C, work_s_C)
    kernels.request_device_time_s(
        fleet, load, query.prompt_tokens, query.output_tokens, params_P[1], out_C
    )
    large = scores.extreme_candidate(fleet, True)
    unit_s = kernels.full_batch_time_s(fleet, large, scores.mean_prompt(query), query.output_tokens)
    slack = max(query.slack_s, 1e-4)
    for c in range(len(fleet.tier_C)):
        debt = min(work_s_C[c] / slack, scores.HUGE)
        gain = params_P[0] * fleet.quality_KC[query.task][c]
        out_C[c] = (
            gain - debt * out_C[c] / unit_s - 1e-7 * min(predicted_s_C[c] / slack, scores.HUGE)
        )


def marginal_time_s(fleet: FleetArrays, query: Query, c: int) -> float:
    """Returns the device time a mean request adds to iterations that run anyway, seconds."""
    time_s = scores.mean_prompt(query) * fleet.per_prompt_token_s_C[c]
    return float(time_s + query.output_tokens * fleet.per_sequence_s_C[c])


def fluid_choice(fleet: FleetArrays, query: Query, task: int, price: float, unit_s: float) -> int:
    """Returns the candidate whose tier wins for `task` at `price` per large request's time."""
    best = -1
    best_value = 0.0
    for c in range(len(fleet.tier_C)):
        if fleet.availability_C[c] <= 0.0:
            continue
        time_s = marginal_time_s(fleet, query, c)
        value = fleet.quality_KC[task][c] - price * time_s / unit_s
        if best < 0 or value > best_value:
            best = c
            best_value = value
    return best


def fluid_load(fleet: FleetArrays, query: Query, price: float, unit_s: float) -> float:
    """Returns the load of a device if every task took its best tier at `price`, 1 = full.

    Requests bring their marginal time; each tier in use runs one step per cycle, and a cycle may
    last slack / output tokens.
    """
    time_s = 0.0
    steps_s = 0.0
    task_count = len(fleet.quality_KC)
    for k in range(task_count):
        c = fluid_choice(fleet, query, k, price, unit_s)
        if c < 0:
            continue
        time_s += marginal_time_s(fleet, query, c) / task_count
        seen = False
        for m in range(k):
            if fluid_choice(fleet, query, m, price, unit_s) == c:
                seen = True
        if not seen:
            steps_s += fleet.step_s_C[c]
    cycles_per_s = query.event_tokens / max(query.slack_s, 1e-4)
    return (
        query.rate_short_rps * time_s / scores.usable_device_count(fleet) + steps_s * cycles_per_s
    )


def score_fluid(
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
    """Linear program on the estimated rate, with a guard on the backlog.

    Maximise quality subject to the load of a device being at most the utilisation, tasks assumed
    equally likely. The dual has one price, found by bisection; between the two neighbouring mixes
    `query.draw` decides. Parameters: 0 utilisation, 1 backlog/slack above which it steps a tier
    down.
    """
    scores.explain(fleet, load, query, 1.0, 8.0, predicted_s_C, probability_C, work_s_C)
    large = scores.extreme_candidate(fleet, True)
    unit_s = marginal_time_s(fleet, query, large) + 1e-9
    low = 0.0
    high = 0.0
    dear = fluid_load(fleet, query, 0.0, unit_s)
    cheap = dear
    if dear > params_P[0]:
        high = 16.0
        for _ in range(16):
            middle = 0.5 * (low + high)
            if fluid_load(fleet, query, middle, unit_s) > params_P[0]:
                low = middle
            else:
                high = middle
        cheap = fluid_load(fleet, query, high, unit_s)
        dear = fluid_load(fleet, query, low, unit_s)
    price = high
    if dear > cheap and query.draw < (params_P[0] - cheap) / (dear - cheap):
        price = low
    chosen = fluid_choice(fleet, query, query.task, price, unit_s)
    tier = float(fleet.tier_C[max(0, chosen)])
    least = scores.HUGE
    for c in range(len(fleet.tier_C)):
        if allowed_C[c]:
            least = min(least, work_s_C[c])
    if least > params_P[1] * query.slack_s:
        tier = max(0.0, tier - 1.0)
    scores.prefer_tier(fleet, tier, work_s_C, out_C)
