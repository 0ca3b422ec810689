"""The feature schema: what a learned policy sees of each candidate, and its kernel.

Every feature is bounded and finite whatever comes in, and free of the fleet's size and of absolute
time: times are divided by the request's slack or by the candidate's own unloaded latency, so that a
network trained on one profile reads another one. The schema string changes with every change of
meaning; a snapshot carries it and is refused where it differs.

The kernel uses only `len`, chained indexing, `math` and scalars: it runs on numpy arrays and on
lists alike, and the simulator compiles this very function.

Shape letters: K tasks, C candidates, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from router import kernels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays

SCHEMA = "tiercel-features-1"
"""Identity of the table below; changes whenever a feature's meaning, order or range does."""

ON_TIME_BIAS = 1.0
ON_TIME_SHARPNESS = 8.0
"""Fixed logistic of the feature `on_time_probability`; a policy may use its own."""


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
    Feature("load_smallest_short", "1", 0.0, 3.0, "Load if the smallest tier took all, 1 s rate."),
    Feature("load_smallest_long", "1", 0.0, 3.0, "Load if the smallest tier took all, 10 s rate."),
    Feature("load_tier_short", "log", 0.0, 1.0, "Load if this tier took all, 0.01 to 100."),
    Feature("load_tier_long", "log", 0.0, 1.0, "Same at the 10 s rate."),
    Feature("rate_trend", "log", -1.0, 1.0, "Rate over 1 s / rate over 10 s, 1/8 to 8."),
    Feature("slack_room", "log", 0.0, 1.0, "Slack / unloaded latency here, 0.1 to 100."),
    Feature("prompt_length", "log", 0.0, 1.0, "Prompt tokens, 1 to 16384."),
    Feature("output_length", "log", 0.0, 1.0, "Predicted output tokens, 1 to 4096."),
    Feature("state_age", "1", 0.0, 5.0, "Age of the system state / slack."),
    Feature("availability", "1", 0.0, 1.0, "0 = unusable, between = ramping up."),
)

FEATURE_COUNT = len(FEATURES)


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


def compute_features(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    task: int,
    slack_s: float,
    prompt_tokens: float,
    output_tokens: float,
    event_tokens: float,
    mean_prompt_tokens: float,
    rate_short_rps: float,
    rate_long_rps: float,
    state_age_s: float,
    predicted_s_C: NDArray[np.float64],
    scratch_C: NDArray[np.float64],
    out_CF: NDArray[np.float32],
) -> None:
    """Computes the features of every candidate, in the order of FEATURES, into `out_CF`.

    Args:
        fleet: candidates.
        load: outstanding load.
        allowed_C: candidates the request may go to; the best quality is taken over these.
        task: index of the task.
        slack_s: time left, seconds.
        prompt_tokens: of this request.
        output_tokens: predicted, of this request.
        event_tokens: tokens until the deadline's event: `output_tokens` for a complete answer,
            1 for a first token.
        mean_prompt_tokens: of recent requests; 0 or less = unknown, this request's is used.
        rate_short_rps: arrivals per second over about 0.2 s.
        rate_long_rps: same over about 10 s.
        state_age_s: age of the newest system state, seconds.
        predicted_s_C: also written: the predicted latency per candidate, seconds.
        scratch_C: working space; afterwards the backlog of each candidate's device, seconds.
        out_CF: the features.
    """
    count = len(fleet.tier_C)
    # A slack of nothing would divide by zero; below 0.1 ms everything is late alike.
    slack = clip(slack_s, 1e-4, 1e9)
    rate_short = clip(rate_short_rps, 0.0, 1e9)
    rate_long = clip(rate_long_rps, 0.0, 1e9)
    mean_prompt = clip(mean_prompt_tokens, 0.0, 1e9)
    if not mean_prompt > 0.0:
        mean_prompt = prompt_tokens
    kernels.predict_latency_s(fleet, load, prompt_tokens, event_tokens, predicted_s_C, mean_prompt)
    kernels.device_backlog_s(fleet, load, scratch_C)

    # Looked up once: on the live path these are lists, and every lookup of a field costs.
    tier_C = fleet.tier_C
    peers_CP = fleet.peers_CP
    step_s_C = fleet.step_s_C
    sequence_s_C = fleet.per_sequence_s_C
    prompt_s_C = fleet.per_prompt_token_s_C
    max_batch_C = fleet.max_batch_C
    availability_C = fleet.availability_C
    quality_C = fleet.quality_KC[task]
    in_flight_C = load.in_flight_C
    waiting_C = load.waiting_prompt_tokens_C

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
            if usable_devices == 0 or scratch_C[c] < backlog_least:
                backlog_least = scratch_C[c]
            backlog_sum += scratch_C[c]
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
    state_age = clip(state_age_s / slack, 0.0, 5.0)
    trend = clip(trend, -1.0, 1.0)

    for c in range(count):
        tier = tier_C[c]
        smaller = 0.0
        same = 0.0
        larger = 0.0
        prompts = 0.0
        cycle = 0.0
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
            elif j != c:
                continue
            if j == c:
                running += 1.0
            cycle += step_s_C[j] + sequence_s_C[j] * min(running, max_batch_C[j])
        batch = min(in_flight_C[c] + 1.0, max_batch_C[c])
        prompt_s = prompt_tokens * prompt_s_C[c]
        own = prompt_s + output_tokens * (sequence_s_C[c] + step_s_C[c] / batch)
        unloaded = fleet.overhead_s_C[c] + prompt_s
        unloaded += event_tokens * (sequence_s_C[c] + step_s_C[c])
        tier_time = kernels.full_batch_time_s(fleet, c, mean_prompt, output_tokens) / devices
        ratio = predicted_s_C[c] / slack
        row = out_CF[c]
        row[0] = clip(quality_C[c], 0.0, 1.0)
        row[1] = clip(best_quality - quality_C[c], 0.0, 1.0)
        row[2] = clip(ratio, 0.0, 3.0)
        row[3] = kernels.logistic(ON_TIME_SHARPNESS * (1.0 - ON_TIME_BIAS * ratio))
        row[4] = log_unit(own / slack, 1e-4, 10.0)
        row[5] = clip(1.0 / batch, 0.0, 1.0)
        row[6] = clip(in_flight_C[c] / max_batch_C[c], 0.0, 2.0)
        row[7] = clip(smaller / slack, 0.0, 3.0)
        row[8] = clip(same / slack, 0.0, 3.0)
        row[9] = clip(larger / slack, 0.0, 3.0)
        row[10] = clip(scratch_C[c] / slack, 0.0, 3.0)
        row[11] = clip(prompts / slack, 0.0, 2.0)
        row[12] = clip(cycle * event_tokens / slack, 0.0, 3.0)
        row[13] = mean_backlog
        row[14] = least_backlog
        row[15] = smallest_short
        row[16] = smallest_long
        row[17] = log_unit(rate_short * tier_time, 0.01, 100.0)
        row[18] = log_unit(rate_long * tier_time, 0.01, 100.0)
        row[19] = trend
        row[20] = log_unit(slack / max(unloaded, 1e-9), 0.1, 100.0)
        row[21] = prompt_length
        row[22] = output_length
        row[23] = state_age
        row[24] = clip(availability_C[c], 0.0, 1.0)
