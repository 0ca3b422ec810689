"""The feature schema: what a learned policy sees of each candidate, and its kernel.

Every feature is bounded and finite whatever comes in, and free of the fleet's size and of absolute
time: times are divided by the request's slack or by the candidate's own unloaded latency, so that a
network trained on one profile reads another one. The schema string changes with every change of
meaning; a snapshot carries it and is refused where it differs.

A learned policy corrects the price score (`router/policies/price.py`), so the kernel computes that
score on the way, on the load as it is seen. The features are computed on the load as it is
*reckoned* (`reckon_load`) and in time as devices lately kept it (`router/slowdown.py`), beside what
the *prior* says there: the scheduled price where parameters come with a table
(`router/policies/scheduled_price.py`), else price.

The kernel uses only `len`, chained indexing, `math` and scalars: it runs on arrays and on memory
views alike, and router and simulator compile this very function.

Shape letters: K tasks, C candidates, F features, P parameters of the price.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from router import kernels, shortlist, slowdown
from router.ledger import LoadArrays, zero_load
from router.policies import price, scheduled_price, scores
from router.policies.scores import Query, Scratch
from router.shortlist import Shortlist

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from router.fleet import FleetArrays

SCHEMA = "tiercel-features-4"
"""Identity of the table below; changes whenever a feature's meaning, order or range does."""

LEAST_SHARE = 0.05
"""Smallest share of the traffic from which the whole is scaled up; below, a few requests say too
little."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of the feature matrix.

    Attributes:
        name: unique name.
        unit: "1" for a ratio, "log" for one mapped by its logarithm.
        low: smallest value.
        high: largest value.
        meaning: one sentence.
    """

    name: str
    unit: str
    low: float
    high: float
    meaning: str


FEATURES: tuple[Feature, ...] = (
    Feature("quality", "1", 0.0, 1.0, "Quality of the tier on the task."),
    Feature("quality_gap", "1", 0.0, 1.0, "Best allowed quality minus this one."),
    Feature("predicted_over_slack", "1", 0.0, 3.0, "Predicted latency / slack."),
    Feature("on_time_probability", "1", 0.0, 1.0, "Logistic of the relative slack left."),
    Feature("device_time", "log", 0.0, 1.0, "Device time the request takes / slack, 1e-4 to 10."),
    Feature("step_share", "1", 0.0, 1.0, "Its share of a step: 1 / (sequences with it)."),
    Feature("batch_fill", "1", 0.0, 2.0, "Outstanding on the candidate / batch limit."),
    Feature("smaller_work", "1", 0.0, 3.0, "Work of smaller tiers on the device / slack."),
    Feature("same_work", "1", 0.0, 3.0, "Work of this tier on the device / slack."),
    Feature("larger_work", "1", 0.0, 3.0, "Work of larger tiers on the device / slack."),
    Feature("device_backlog", "1", 0.0, 3.0, "All work on the device / slack."),
    Feature("waiting_prompts", "1", 0.0, 2.0, "Prompt work waiting on the device / slack."),
    Feature("cycle_time", "1", 0.0, 3.0, "Cycle with it x cycles it needs / slack."),
    Feature("mean_backlog", "1", 0.0, 3.0, "Mean work per usable device / slack."),
    Feature("least_backlog", "1", 0.0, 3.0, "Least work on a usable device / slack."),
    Feature(
        "load_smallest_short", "1", 0.0, 3.0, "Load if the smallest tier took all, 0.2 s rate."
    ),
    Feature("load_smallest_long", "1", 0.0, 3.0, "Load if the smallest tier took all, 10 s rate."),
    Feature("load_tier_short", "log", 0.0, 1.0, "Load if this tier took all, 0.01 to 100."),
    Feature("load_tier_long", "log", 0.0, 1.0, "Same at the 10 s rate."),
    Feature("rate_trend", "log", -1.0, 1.0, "Rate over 0.2 s / rate over 10 s, 1/8 to 8."),
    Feature("slack_room", "log", 0.0, 1.0, "Slack / unloaded latency here, 0.1 to 100."),
    Feature("prompt_length", "log", 0.0, 1.0, "Prompt tokens, 1 to 16384."),
    Feature("output_length", "log", 0.0, 1.0, "Predicted output tokens, 1 to 4096."),
    Feature("state_age", "1", 0.0, 5.0, "Age of the system state / slack."),
    Feature("availability", "1", 0.0, 1.0, "0 = unusable, between = ramping up."),
    Feature("price_gap", "1", -1.0, 0.0, "Price score less the best allowed one, as seen."),
    Feature("prior_shift", "1", -1.0, 1.0, "Gap of the prior on reckoned load, less price_gap."),
    Feature("prior_charge", "1", 0.0, 2.0, "What the prior charges for the device's time."),
    Feature("prior_on_time", "1", 0.0, 1.0, "P(on time) as the prior reads it."),
    Feature("burstiness", "log", 0.0, 1.0, "Squared CV of arrival gaps, 1/4 to 64."),
    Feature("own_share", "1", 0.0, 1.0, "Share of the traffic that is this router's."),
    Feature("device_in_flight", "log", 0.0, 1.0, "1 + outstanding on the device, 1 to 1000."),
    Feature("disturbance", "1", 0.0, 3.0, "Delay of all on the device together / 10 slacks."),
    Feature("soft_decay", "1", 0.0, 3.0, "Decay time of a soft deadline / slack; 0 = hard."),
    Feature("band_distance", "1", 0.0, 1.0, "How far the device is outside its tier's band."),
    Feature("ladder_load", "1", -2.0, 2.0, "Load: 0 fills the largest tier, 1 the smallest."),
)

FEATURE_COUNT = len(FEATURES)
(
    QUALITY,
    QUALITY_GAP,
    PREDICTED_OVER_SLACK,
    ON_TIME_PROBABILITY,
    DEVICE_TIME,
    STEP_SHARE,
    BATCH_FILL,
    SMALLER_WORK,
    SAME_WORK,
    LARGER_WORK,
    DEVICE_BACKLOG,
    WAITING_PROMPTS,
    CYCLE_TIME,
    MEAN_BACKLOG,
    LEAST_BACKLOG,
    LOAD_SMALLEST_SHORT,
    LOAD_SMALLEST_LONG,
    LOAD_TIER_SHORT,
    LOAD_TIER_LONG,
    RATE_TREND,
    SLACK_ROOM,
    PROMPT_LENGTH,
    OUTPUT_LENGTH,
    STATE_AGE,
    AVAILABILITY,
    PRICE_GAP,
    PRIOR_SHIFT,
    PRIOR_CHARGE,
    PRIOR_ON_TIME,
    BURSTINESS,
    OWN_SHARE,
    DEVICE_IN_FLIGHT,
    DISTURBANCE,
    SOFT_DECAY,
    BAND_DISTANCE,
    LADDER_LOAD,
) = range(FEATURE_COUNT)
"""The columns by name, in the order of FEATURES."""

BASE_COLUMN = PRICE_GAP
"""Column of the score that a network corrects, as far as it matters for a choice."""
SHIFT_COLUMN = PRIOR_SHIFT
"""Column of what the prior would add to that score: a network of this one weight follows it."""


def clip(value: float, low: float, high: float) -> float:
    """Returns the value limited to [low, high]; `high` for NaN, the cautious reading."""
    if value < low:
        return low
    if value <= high:
        return value
    return high


def log_unit(value: float, low: float, high: float) -> float:
    """Maps [low, high] to [0, 1] by the logarithm; what lies outside is clipped, NaN reads as 1."""
    if value <= low:
        return 0.0
    if value < high:
        return math.log(value / low) / math.log(high / low)
    return 1.0


class FeatureScratch(NamedTuple):
    """Working space of `compute_features`; what lies in `seen` is a result as well.

    Attributes:
        seen: predictions and the price score on the load as seen.
        load: the load as reckoned.
        reckoned: the same of the prior, on the load as reckoned.
        band_C: how far each candidate is outside its tier's band.
        listed: the candidates whose features are computed.
    """

    seen: Scratch
    load: LoadArrays
    reckoned: Scratch
    band_C: NDArray[np.float64]
    listed: Shortlist


def feature_scratch(candidate_count: int) -> FeatureScratch:
    """Returns working space."""
    return FeatureScratch(
        scores.scratch(candidate_count),
        zero_load(candidate_count),
        scores.scratch(candidate_count),
        np.zeros(candidate_count),
        Shortlist(*(np.zeros(candidate_count) for _ in Shortlist._fields)),
    )


def with_rate(query: Query, rate_short_rps: float) -> Query:
    """Returns the query with another short rate (compiled code has no `_replace`)."""
    return Query(
        query.task,
        query.slack_s,
        query.prompt_tokens,
        query.output_tokens,
        query.event_tokens,
        query.soft_decay_s,
        query.mean_prompt_tokens,
        rate_short_rps,
        query.rate_long_rps,
        query.state_age_s,
        query.draw,
        query.own_share,
        query.own_rate_rps,
        query.burstiness,
        query.slowdown,
        query.pressure,
        query.is_small,
        query.log_price,
        query.token_interval_s,
    )


def reckoned_share(query: Query) -> float:
    """Returns how much of the others' load is reckoned from the own one, 0 to 1.

    As much as is gone of what the state said (`scores.aged_share`); 0 where this router has all the
    traffic.
    """
    if query.own_share >= 1.0 or not query.state_age_s > 0.0:
        return 0.0
    return scores.aged_share(query)


def reckon(seen: float, own: float, share: float, own_share: float) -> float:
    """Returns a total of which `own` is exact and the rest is old, partly scaled up from `own`."""
    others = max(0.0, seen - own)
    return own + (1.0 - share) * others + share * own * (1.0 - own_share) / own_share


def reckon_load(
    load: LoadArrays, own: LoadArrays, share: float, own_share: float, out: LoadArrays
) -> None:
    """Fills `out`, the load as reckoned: the older the picture of others, the more by the own load.

    Routers that all act on the same old picture herd to the device that looked free, and swing
    between tiers together. The own load is exact and fresh; where clients balance over routers it
    is a sample of the total, `own_share` of it. The older the picture, the more of the others' part
    is taken from that sample.
    """
    for c in range(len(out.in_flight_C)):
        out.in_flight_C[c] = reckon(load.in_flight_C[c], own.in_flight_C[c], share, own_share)
        out.waiting_prompt_tokens_C[c] = reckon(
            load.waiting_prompt_tokens_C[c], own.waiting_prompt_tokens_C[c], share, own_share
        )
        out.remaining_output_tokens_C[c] = reckon(
            load.remaining_output_tokens_C[c], own.remaining_output_tokens_C[c], share, own_share
        )


def compute_features(
    fleet: FleetArrays,
    load: LoadArrays,
    own: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    base_P: NDArray[np.float64],
    scratch: FeatureScratch,
    every: bool,
    out_CF: NDArray[np.float32],
) -> bool:
    """Computes the features of candidates, in the order of FEATURES, into `out_CF`.

    Predictions and prices are those of the whole fleet, and so is what features say of it. The rows
    are those of every candidate, or those of a shortlist if the fleet is large
    (`router.shortlist`); the others are then 0.

    Args:
        fleet: candidates.
        load: outstanding load as seen: own and others'.
        own: the part of it that is this router's.
        allowed_C: candidates the request may go to; the best of anything is taken over these.
        query: the request and the traffic.
        base_P: parameters of the price score, and the scheduled price's table if there is one.
        scratch: working space; `seen` is a result, and `listed` if there is a shortlist.
        every: compute all rows, however large the fleet is.
        out_CF: the features.

    Returns:
        Whether the rows are those of a shortlist.
    """
    seen = prior = scratch.seen
    scores.predict(fleet, load, query, seen)
    price.score(fleet, load, allowed_C, query, base_P, seen)
    is_slow = query.slowdown > 1.0
    query = slowdown.stretched(query)
    view = load
    rate_short = clip(query.rate_short_rps, 0.0, 1e9)
    share = reckoned_share(query)
    has_schedule = scheduled_price.has_schedule(base_P)
    if share > 0.0 or has_schedule or is_slow:
        prior = scratch.reckoned
    if share > 0.0:
        own_share = max(query.own_share, LEAST_SHARE)
        if query.own_rate_rps > 0.0:
            rate_short = (1.0 - share) * rate_short + share * query.own_rate_rps / own_share
        view = scratch.load
        reckon_load(load, own, share, own_share, view)
        scores.predict(fleet, view, query, prior)
    else:  # the same load, so the same predictions
        prior = Scratch(seen.predicted_s_C, seen.work_s_C, prior.probability_C, prior.score_C)
    reckoned = with_rate(query, rate_short)
    can = scores.capacity(fleet, query)
    ladder_load = scheduled_price.schedule_load(can, reckoned)
    band_C = scratch.band_C
    if has_schedule:
        scheduled_price.band_distance(fleet, base_P, ladder_load, band_C)
        scheduled_price.score_in_bands(fleet, view, reckoned, can, base_P, band_C, prior)
    else:
        for c in range(len(band_C)):
            band_C[c] = 0.0
        if share > 0.0 or is_slow:
            price.score(fleet, view, allowed_C, reckoned, base_P, prior)
    listed = scratch.listed
    short = False
    if not every:
        for c in range(len(listed.weight_C)):
            if listed.weight_C[c] > 0.0:  # of the decision before
                for f in range(FEATURE_COUNT):
                    out_CF[c][f] = 0.0
        short = shortlist.choose(fleet, allowed_C, prior.score_C, seen.score_C, listed)
    _fill(
        fleet,
        view,
        allowed_C,
        query,
        rate_short,
        prior,
        seen.score_C,
        band_C,
        ladder_load,
        listed.weight_C,
        short,
        out_CF,
    )
    return short


def _fill(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    rate_short: float,
    prior: Scratch,
    seen_price_C: NDArray[np.float64],
    band_C: NDArray[np.float64],
    ladder_load: float,
    weight_C: NDArray[np.float64],
    short: bool,
    out_CF: NDArray[np.float32],
) -> None:
    """Fills the matrix from the load as reckoned and what the prior found on it."""
    # A slack of nothing would divide by zero; below 0.1 ms everything is late alike.
    slack = clip(query.slack_s, 1e-4, 1e9)
    rate_long = clip(query.rate_long_rps, 0.0, 1e9)
    prompt_tokens = query.prompt_tokens
    output_tokens = query.output_tokens
    event_tokens = query.event_tokens
    token_interval = query.token_interval_s
    mean_prompt = clip(scores.mean_prompt(query), 0.0, 1e9)

    # Looked up once: in plain Python every lookup of a field costs.
    predicted_s_C, backlog_s_C, probability_C, price_C = prior
    count = len(fleet.tier_C)
    tier_C = fleet.tier_C
    peers_CP = fleet.peers_CP
    step_s_C = fleet.step_s_C
    sequence_s_C = fleet.per_sequence_s_C
    prompt_s_C = fleet.per_prompt_token_s_C
    cached_C = fleet.cached_C
    max_batch_C = fleet.max_batch_C
    availability_C = fleet.availability_C
    quality_C = fleet.quality_KC[query.task]
    in_flight_C = load.in_flight_C
    waiting_C = load.waiting_prompt_tokens_C
    remaining_C = load.remaining_output_tokens_C

    best = kernels.best_allowed(price_C, allowed_C)
    best_price = price_C[best] if best >= 0 else 0.0
    best = kernels.best_allowed(seen_price_C, allowed_C)
    best_seen = seen_price_C[best] if best >= 0 else 0.0
    best_quality = 0.0
    smallest = -1
    usable_devices = 0
    backlog_sum = 0.0
    backlog_least = 0.0
    for c in range(count):
        if allowed_C[c] and quality_C[c] > best_quality:
            best_quality = quality_C[c]
        if availability_C[c] <= 0.0:
            continue
        if smallest < 0 or tier_C[c] < tier_C[smallest]:
            smallest = c
        if kernels.is_first_usable(fleet, c):
            if usable_devices == 0 or backlog_s_C[c] < backlog_least:
                backlog_least = backlog_s_C[c]
            backlog_sum += backlog_s_C[c]
            usable_devices += 1
    devices = max(1, usable_devices)

    load_smallest = 0.0
    if smallest >= 0:
        load_smallest = kernels.full_batch_time_s(fleet, smallest, mean_prompt, output_tokens)
        load_smallest /= devices
    trend = 0.0
    if rate_long > 0.0:
        trend = 2.0 * log_unit(rate_short / max(rate_long, 1e-6), 0.125, 8.0) - 1.0

    # The same for every candidate.
    mean_backlog = clip(backlog_sum / devices / slack, 0.0, 3.0)
    least_backlog = clip(backlog_least / slack, 0.0, 3.0)
    smallest_short = clip(rate_short * load_smallest, 0.0, 3.0)
    smallest_long = clip(rate_long * load_smallest, 0.0, 3.0)
    prompt_length = log_unit(prompt_tokens, 1.0, 16384.0)
    output_length = log_unit(output_tokens, 1.0, 4096.0)
    state_age = clip(query.state_age_s / slack, 0.0, 5.0)
    burstiness = log_unit(query.burstiness, 0.25, 64.0)
    own_share = clip(query.own_share, 0.0, 1.0)
    soft_decay = clip(query.soft_decay_s / slack, 0.0, 3.0)
    trend = clip(trend, -1.0, 1.0)

    for c in range(count):
        if short and weight_C[c] <= 0.0:
            continue
        tier = tier_C[c]
        smaller = 0.0
        same = 0.0
        larger = 0.0
        prompts = 0.0
        cycle = 0.0
        outstanding = 0.0
        disturbed = 0.0
        prompt_s = (prompt_tokens - cached_C[c]) * prompt_s_C[c]
        token_s = sequence_s_C[c]
        if in_flight_C[c] <= 0.0:
            token_s += step_s_C[c]
        for j in peers_CP[c]:
            if j < 0:
                break
            running = in_flight_C[j]
            if running > 0.0:
                work = kernels.candidate_work_s(fleet, load, j)
                if tier_C[j] < tier:
                    smaller += work
                elif tier_C[j] > tier:
                    larger += work
                else:
                    same += work
                prompts += waiting_C[j] * prompt_s_C[j]
                outstanding += running
                shared = min(output_tokens, remaining_C[j] / running)
                disturbed += running * (prompt_s + shared * token_s)
            elif j != c:
                continue
            if j == c:
                running += 1.0
            cycle += step_s_C[j] + sequence_s_C[j] * min(running, max_batch_C[j])
        batch = min(in_flight_C[c] + 1.0, max_batch_C[c])
        own = prompt_s + output_tokens * (sequence_s_C[c] + step_s_C[c] / batch)
        unloaded = fleet.overhead_s_C[c] + prompt_s
        alone = sequence_s_C[c] + step_s_C[c]
        unloaded += event_tokens * alone - kernels.granted_s(alone, event_tokens, token_interval)
        tier_time = kernels.full_batch_time_s(fleet, c, mean_prompt, output_tokens) / devices
        ratio = predicted_s_C[c] / slack
        row = out_CF[c]
        row[QUALITY] = clip(quality_C[c], 0.0, 1.0)
        row[QUALITY_GAP] = clip(best_quality - quality_C[c], 0.0, 1.0)
        row[PREDICTED_OVER_SLACK] = clip(ratio, 0.0, 3.0)
        row[ON_TIME_PROBABILITY] = kernels.logistic(
            scores.ON_TIME_SHARPNESS * (1.0 - scores.ON_TIME_BIAS * ratio)
        )
        row[DEVICE_TIME] = log_unit(own / slack, 1e-4, 10.0)
        row[STEP_SHARE] = clip(1.0 / batch, 0.0, 1.0)
        row[BATCH_FILL] = clip(in_flight_C[c] / max_batch_C[c], 0.0, 2.0)
        row[SMALLER_WORK] = clip(smaller / slack, 0.0, 3.0)
        row[SAME_WORK] = clip(same / slack, 0.0, 3.0)
        row[LARGER_WORK] = clip(larger / slack, 0.0, 3.0)
        row[DEVICE_BACKLOG] = clip(backlog_s_C[c] / slack, 0.0, 3.0)
        row[WAITING_PROMPTS] = clip(prompts / slack, 0.0, 2.0)
        cycles_s = cycle * event_tokens - kernels.granted_s(cycle, event_tokens, token_interval)
        row[CYCLE_TIME] = clip(cycles_s / slack, 0.0, 3.0)
        row[MEAN_BACKLOG] = mean_backlog
        row[LEAST_BACKLOG] = least_backlog
        row[LOAD_SMALLEST_SHORT] = smallest_short
        row[LOAD_SMALLEST_LONG] = smallest_long
        row[LOAD_TIER_SHORT] = log_unit(rate_short * tier_time, 0.01, 100.0)
        row[LOAD_TIER_LONG] = log_unit(rate_long * tier_time, 0.01, 100.0)
        row[RATE_TREND] = trend
        row[SLACK_ROOM] = log_unit(slack / max(unloaded, 1e-9), 0.1, 100.0)
        row[PROMPT_LENGTH] = prompt_length
        row[OUTPUT_LENGTH] = output_length
        row[STATE_AGE] = state_age
        row[AVAILABILITY] = clip(availability_C[c], 0.0, 1.0)
        gap = clip(seen_price_C[c] - best_seen, -1.0, 0.0)
        row[PRICE_GAP] = gap
        row[PRIOR_SHIFT] = clip(price_C[c] - best_price, -1.0, 0.0) - gap
        row[PRIOR_CHARGE] = clip(quality_C[c] * probability_C[c] - price_C[c], 0.0, 2.0)
        row[PRIOR_ON_TIME] = clip(probability_C[c], 0.0, 1.0)
        row[BURSTINESS] = burstiness
        row[OWN_SHARE] = own_share
        row[DEVICE_IN_FLIGHT] = log_unit(1.0 + outstanding, 1.0, 1000.0)
        row[DISTURBANCE] = clip(0.1 * disturbed / slack, 0.0, 3.0)
        row[SOFT_DECAY] = soft_decay
        row[BAND_DISTANCE] = band_C[c]
        row[LADDER_LOAD] = clip(ladder_load, -2.0, 2.0)
