"""What the score kernels of the policies share: the query, the scratch, readings of the load.

A policy is a kernel and a vector of parameters. The kernel gives every candidate a score, and the
highest allowed one is chosen:

    score(fleet, load, allowed_C, query, params_P, s)

`s` is a `Scratch` whose predictions are filled before (`predict`); the kernel fills the scores, and
P(on time) if it weighs it. Candidates that are not allowed may get any score: the choice skips
them. Kernels are plain functions in the manner of `router.kernels`, which router and simulator
compile.

Shape letters: K tasks, C candidates, P parameters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from router import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays

HUGE = 1e9
"""Distance between scores of candidates of which one must always win over the other."""

ON_TIME_BIAS = 1.0
ON_TIME_SHARPNESS = 8.0
"""The logistic of P(on time), where a policy has none of its own."""


class Query(NamedTuple):
    """A request and the traffic as scalars, in the order the compiled path builds them.

    Attributes:
        task: index of the task.
        slack_s: time left, seconds.
        prompt_tokens: of this request.
        output_tokens: predicted, of this request.
        event_tokens: tokens until the deadline's event (1 for a first-token deadline, all where
            each token is due).
        soft_decay_s: e-folding time of a soft reward, seconds; 0 = hard.
        mean_prompt_tokens: of recent requests, what was cached left out; 0 = unknown.
        rate_short_rps: arrivals per second over about 0.2 s.
        rate_long_rps: same over about 10 s.
        state_age_s: age of the newest system state, seconds.
        draw: uniform random number in [0, 1), for policies that randomise.
        own_share: share of the traffic that comes through this router, (0, 1].
        own_rate_rps: arrivals per second at this router over about 0.2 s; 0 = not told apart.
        burstiness: squared coefficient of variation of recent gaps between arrivals, 1 = Poisson.
        slowdown: how much slower answers came lately than predicted, 1 or more.
        pressure: logarithm of the factor on the price of device time (`router.pressure`).
        is_small: 1: the smallest tier is taken, whatever the price says; else 0.
        log_price: what its priority class adds to the pressure (`router.priority`); may be below 0.
        token_interval_s: between the due times of two tokens, seconds; 0 = there is no schedule,
            and the deadline is that of one event.
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
    pressure: float = 0.0
    is_small: float = 0.0
    log_price: float = 0.0
    token_interval_s: float = 0.0


class Scratch(NamedTuple):
    """What a decision rests on and what it comes to, [C] each.

    Attributes:
        predicted_s_C: predicted time to the deadline's event, seconds.
        work_s_C: backlog of each candidate's device, seconds.
        probability_C: P(on time) as the policy reads it.
        score_C: the policy's scores.
    """

    predicted_s_C: NDArray[np.float64]
    work_s_C: NDArray[np.float64]
    probability_C: NDArray[np.float64]
    score_C: NDArray[np.float64]


def scratch(candidate_count: int) -> Scratch:
    """Returns working space."""
    return Scratch(*(np.zeros(candidate_count) for _ in Scratch._fields))


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


class Capacity(NamedTuple):
    """What the usable devices can carry of requests like the one at hand, free of load and rate.

    Attributes:
        device_count: usable devices, at least 1.
        large_s: device time of one request on the largest usable tier in full batches, seconds.
        small_s: the same on the smallest.
    """

    device_count: int
    large_s: float
    small_s: float


def aged_share(query: Query) -> float:
    """Returns how much of what the last state said is gone: its age over the slack, 0 to 1.

    What others had on the devices is gone after about a deadline.
    """
    return min(1.0, max(0.0, query.state_age_s / max(query.slack_s, 1e-4)))


def capacity(fleet: FleetArrays, query: Query) -> Capacity:
    """Returns what the usable devices can carry; a mean prompt is reckoned with."""
    prompt = mean_prompt(query)
    large = extreme_candidate(fleet, True)
    small = extreme_candidate(fleet, False)
    return Capacity(
        usable_device_count(fleet),
        kernels.full_batch_time_s(fleet, large, prompt, query.output_tokens),
        kernels.full_batch_time_s(fleet, small, prompt, query.output_tokens),
    )


def ladder_load(can: Capacity, rate_rps: float) -> float:
    """Returns where the offered load stands between the tiers' capacities.

    0 = all devices would be just full if the largest tier took every request in full batches, 1 =
    if the smallest did; logarithmic between and beyond, limited to [-2, 2]. Free of the fleet's
    size, of absolute time and of the ladder's width.
    """
    load = rate_rps * can.large_s / can.device_count
    if load <= 0.0:
        return -2.0
    width = math.log(max(can.large_s / can.small_s, 1.5))
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


def predict(fleet: FleetArrays, load: LoadArrays, query: Query, s: Scratch) -> None:
    """Fills what every policy scores by: predicted latency and device backlog."""
    kernels.predict_latency_s(
        fleet,
        load,
        query.prompt_tokens,
        query.event_tokens,
        s.predicted_s_C,
        query.mean_prompt_tokens,
        kernels.PERSISTENCE,
        0,
        kernels.ALL,
        query.token_interval_s,
    )
    kernels.device_backlog_s(fleet, load, s.work_s_C)


def weigh_on_time(query: Query, bias: float, sharpness: float, s: Scratch) -> None:
    """Fills P(on time) from what was predicted."""
    kernels.on_time_probability(s.predicted_s_C, query.slack_s, bias, sharpness, s.probability_C)


def prefer_tier(fleet: FleetArrays, tier: float, s: Scratch) -> None:
    """Scores `tier` first, then lower tiers, then higher ones; inside a tier the least backlog."""
    for c in range(len(fleet.tier_C)):
        distance = tier - fleet.tier_C[c]
        if distance < 0.0:
            distance = 1000.0 - distance
        s.score_C[c] = -HUGE * distance - min(s.work_s_C[c], HUGE)
