"""Fluid: the mix of the linear program on the estimated rate, a tier lower when work piles up.

Fails: when the estimated rate lags a burst (the guard then gives a whole tier away), when tasks are
unequally frequent, on slow devices.
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

PARAMETERS = (
    Parameter("utilisation", 0.667, 0.05, 2.0, "Share of capacity that is planned."),
    Parameter("guard", 0.236, 0.01, 10.0, "Backlog / slack above which it steps down."),
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
    last slack / output tokens; with a schedule of tokens, as it asks for.
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
    slack_s = max(query.slack_s, 1e-4)
    cycles_per_s = query.event_tokens / slack_s
    if query.token_interval_s > 0.0:
        # As many as all tokens need by the last one's due time, and the first one by its own.
        last_s = slack_s + max(0.0, query.event_tokens - 1.0) * query.token_interval_s
        cycles_per_s = max(query.event_tokens / last_s, 1.0 / slack_s)
    return (
        query.rate_short_rps * time_s / scores.usable_device_count(fleet) + steps_s * cycles_per_s
    )


def score(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    s: Scratch,
) -> None:
    """Linear program on the estimated rate, with a guard on the backlog.

    Maximise quality subject to the load of a device being at most the utilisation, tasks assumed
    equally likely. The dual has one price, found by bisection; between the two neighbouring mixes
    `query.draw` decides. Parameters: 0 utilisation, 1 backlog/slack above which it steps a tier
    down.
    """
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
            least = min(least, s.work_s_C[c])
    if least > params_P[1] * query.slack_s:
        tier = max(0.0, tier - 1.0)
    scores.prefer_tier(fleet, tier, s)
