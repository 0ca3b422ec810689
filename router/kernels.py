"""Numeric kernels: predictions every policy shares, as plain functions of arrays.

They use nothing but `len`, chained indexing (`quality_KC[task][c]`), `math` and scalars, so that
these very functions can be compiled (there is no second copy), and so that plain Python may be
given memory views, which it reads faster than arrays. A function may call only functions of this
module defined above it.

Shape letters: K tasks, T tiers, C candidates, D devices, F features.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays

PERSISTENCE = 0.9
"""Share of departures that predictions take as replaced by arrivals; fits the simulator best over
loads from a fifth to all of what a tier holds."""
ALL = 1 << 30
"""More candidates than there can be."""


def candidate_work_s(fleet: FleetArrays, load: LoadArrays, c: int) -> float:
    """Returns the work outstanding on one candidate, seconds of device time.

    A tier with n sequences and w remaining tokens has about w / min(n, B) iterations left; every
    token costs its sequence's part, every waiting prompt token its own.
    """
    if load.in_flight_C[c] <= 0.0:
        return 0.0
    batch = min(load.in_flight_C[c], fleet.max_batch_C[c])
    work = load.waiting_prompt_tokens_C[c] * fleet.per_prompt_token_s_C[c]
    work += load.remaining_output_tokens_C[c] * fleet.per_sequence_s_C[c]
    work += load.remaining_output_tokens_C[c] / batch * fleet.step_s_C[c]
    return float(work)


def full_batch_time_s(
    fleet: FleetArrays, c: int, prompt_tokens: float, output_tokens: float
) -> float:
    """Returns the device time of one request on `c` if its tier ran with full batches, seconds.

    The least a request can cost on that tier: its prompt, its tokens, and 1/B of every step.
    """
    token_s = fleet.per_sequence_s_C[c] + fleet.step_s_C[c] / fleet.max_batch_C[c]
    return float(prompt_tokens * fleet.per_prompt_token_s_C[c] + output_tokens * token_s)


def granted_s(cycle_s: float, event_tokens: float, token_interval_s: float) -> float:
    """Returns how much of the time after the first token a schedule of tokens grants, seconds.

    The deadline is that of the first token. Of each cycle after it the schedule grants what the
    next token may take, `token_interval_s`, and no more than the cycle lasts: to be early with one
    token brings the first one no sooner. What is left of the whole time is that of the token which
    is latest against its due time, counted as if it were the first: with even cycles that is the
    first token or the last.

    Args:
        cycle_s: time from one token to the next.
        event_tokens: tokens until the deadline's event.
        token_interval_s: time between two due times; 0 = there is no schedule, nothing is granted.
    """
    if token_interval_s <= 0.0 or event_tokens <= 1.0:
        return 0.0
    return (event_tokens - 1.0) * min(cycle_s, token_interval_s)


def logistic(x: float) -> float:
    """Returns 1 / (1 + exp(-x)), with the ends cut off where they no longer matter; NaN gives 0."""
    if x > 30.0:
        return 1.0
    if x >= -30.0:
        return 1.0 / (1.0 + math.exp(-x))
    return 0.0


def predict_latency_s(
    fleet: FleetArrays,
    load: LoadArrays,
    prompt_tokens: float,
    output_tokens: float,
    out_C: NDArray[np.float64],
    mean_prompt_tokens: float = 0.0,
    persistence: float = PERSISTENCE,
    first: int = 0,
    end: int = ALL,
    token_interval_s: float = 0.0,
) -> None:
    """Predicts how long one more request would take on each candidate, into `out_C`, seconds.

    Tiers of a device take turns: while our request runs, a cycle is the sum of the iterations of
    the device's active tiers. A tier with n sequences and w remaining tokens stays active for about
    w/n more cycles if nothing else comes; our request needs `output_tokens` cycles, so another tier
    costs it min(output_tokens, w/n) iterations. Prompts that wait on the device are computed before
    or beside ours. Sequences beyond a tier's batch limit wait for a slot: with n >= B the request
    waits (n - B + 1)/B batch generations of w/n cycles first.

    But more does come. In a steady state n/output sequences leave a tier per cycle and as many
    arrive, each with a prompt that every tier of the device waits for. The prediction takes the
    share `persistence` of them as replaced: then other tiers do not run dry, and each cycle is
    longer by the prompts of the replacements. Waiting for the iteration under way adds half of our
    own tier's iteration.

    With a schedule of tokens the time is that of the token which is latest against its due time,
    less what the schedule grants it after the first (`granted_s`); so it compares with the time
    until the first one is due, as any other does with the time until the deadline.

    Args:
        fleet: candidates.
        load: outstanding load.
        prompt_tokens: of the request; what a candidate has cached of them takes it no time.
        output_tokens: tokens until the deadline's event.
        out_C: result.
        mean_prompt_tokens: of recent requests; 0 = unknown, this request's is used.
        persistence: share of departures that arrivals replace, 0 (the device drains) to 1.
        first: first candidate to predict; the others' results stay as they are.
        end: candidate after the last one to predict.
        token_interval_s: time between the due times of two tokens; 0 = there is no schedule.
    """
    mean_prompt = mean_prompt_tokens
    if not mean_prompt > 0.0:
        mean_prompt = prompt_tokens
    # Looked up once: in plain Python every lookup of a field costs.
    peers_CP = fleet.peers_CP
    step_s_C = fleet.step_s_C
    sequence_s_C = fleet.per_sequence_s_C
    prompt_s_C = fleet.per_prompt_token_s_C
    max_batch_C = fleet.max_batch_C
    overhead_s_C = fleet.overhead_s_C
    cached_C = fleet.cached_C
    in_flight_C = load.in_flight_C
    waiting_C = load.waiting_prompt_tokens_C
    remaining_C = load.remaining_output_tokens_C
    is_paced = token_interval_s > 0.0 and output_tokens > 1.0
    further = output_tokens - 1.0
    for c in range(first, min(end, len(max_batch_C))):
        own = in_flight_C[c]
        limit = max_batch_C[c]
        cycles = output_tokens
        if own >= limit:
            cycles += (own - limit + 1.0) / limit * (remaining_C[c] / own)
        # Ours: the batch with one more; half an iteration is the wait for the one under way.
        batch = min(own + 1.0, limit)
        iteration = step_s_C[c] + sequence_s_C[c] * batch
        cycles_c = cycles
        if own > 0.0:
            # Twice the mean of what remains is about what those sequences had in all.
            leaving = min(own, limit) / max(2.0 * remaining_C[c] / own, 1.0)
            iteration += persistence * leaving * mean_prompt * prompt_s_C[c]
            cycles_c += 0.5
        total = overhead_s_C[c] + (prompt_tokens - cached_C[c] + waiting_C[c]) * prompt_s_C[c]
        total += cycles_c * iteration
        later = further * iteration  # from the first token to the last
        for j in peers_CP[c]:
            if j < 0:
                break
            running = in_flight_C[j]
            if j == c or running <= 0.0:
                continue
            batch = min(running, max_batch_C[j])
            left = remaining_C[j]
            leaving = batch / max(2.0 * left / running, 1.0)
            iteration = step_s_C[j] + sequence_s_C[j] * batch
            iteration += persistence * leaving * mean_prompt * prompt_s_C[j]
            dry = min(cycles, left / batch)
            cycles_j = persistence * cycles + (1.0 - persistence) * dry
            total += waiting_C[j] * prompt_s_C[j] + cycles_j * iteration
            if is_paced:
                dry -= min(cycles - further, left / batch)
                later += (persistence * further + (1.0 - persistence) * dry) * iteration
        if is_paced:
            total -= min(later, further * token_interval_s)
        out_C[c] = total


def device_backlog_s(fleet: FleetArrays, load: LoadArrays, out_C: NDArray[np.float64]) -> None:
    """Computes the work outstanding on each candidate's device, seconds, into `out_C`."""
    peers_CP = fleet.peers_CP
    # Summed up at the device's first candidate, then handed to its others.
    for c in range(len(fleet.tier_C)):
        work = candidate_work_s(fleet, load, c)
        first = peers_CP[c][0]
        if first == c:
            out_C[c] = work
        else:
            out_C[first] += work
    for c in range(len(fleet.tier_C)):
        out_C[c] = out_C[peers_CP[c][0]]


def is_first_usable(fleet: FleetArrays, c: int) -> bool:
    """Returns whether `c` is usable and the first such candidate of its device.

    Counting devices at these counts each usable device once.
    """
    availability_C = fleet.availability_C
    if availability_C[c] <= 0.0:
        return False
    for j in fleet.peers_CP[c]:
        if j >= c or j < 0:
            break
        if availability_C[j] > 0.0:
            return False
    return True


def request_device_time_s(
    fleet: FleetArrays,
    load: LoadArrays,
    prompt_tokens: float,
    output_tokens: float,
    step_share: float,
    out_C: NDArray[np.float64],
) -> None:
    """Computes the device time one more request takes on each candidate, seconds, into `out_C`.

    Its prompt and its share of every iteration are its own. The cost of a step is shared with the
    sequences that run beside it; `step_share` (0 to 1) blends between sharing it evenly (1) and
    paying nothing for it (0).
    """
    for c in range(len(fleet.tier_C)):
        batch = min(load.in_flight_C[c] + 1.0, fleet.max_batch_C[c])
        own = (prompt_tokens - fleet.cached_C[c]) * fleet.per_prompt_token_s_C[c]
        own += output_tokens * fleet.per_sequence_s_C[c]
        out_C[c] = own + step_share * output_tokens * fleet.step_s_C[c] / batch


def on_time_probability(
    predicted_s_C: NDArray[np.float64],
    slack_s: float,
    bias: float,
    sharpness: float,
    out_C: NDArray[np.float64],
) -> None:
    """Computes P(on time) per candidate as a logistic of relative slack, into `out_C`.

    p = 1 / (1 + exp(-sharpness * (1 - bias * predicted/slack))); zero slack or less gives 0.
    """
    for c in range(len(predicted_s_C)):
        if slack_s <= 0.0:
            out_C[c] = 0.0
            continue
        out_C[c] = logistic(sharpness * (1.0 - bias * predicted_s_C[c] / slack_s))


def allowed_mask(
    fleet: FleetArrays,
    task: int,
    quality_floor: float,
    tier_pin: int,
    ramp_draw: float,
    out_C: NDArray[np.bool_],
) -> int:
    """Marks the candidates a request may go to, into `out_C`; returns how many.

    A candidate that ramps up (0 < availability < 1) is open to the share `availability` of
    requests: those whose `ramp_draw` (uniform in [0, 1)) is below it. If that closes everything,
    ramping candidates are opened again.
    """
    count = 0
    for attempt in range(2):
        for c in range(len(fleet.tier_C)):
            available = fleet.availability_C[c]
            is_open = available > 0.0 and (attempt == 1 or ramp_draw < available)
            if tier_pin >= 0 and fleet.tier_C[c] != tier_pin:
                is_open = False
            if fleet.quality_KC[task][c] < quality_floor:
                is_open = False
            out_C[c] = is_open
            if is_open:
                count += 1
        if count > 0:
            return count
    return 0


def count_allowed(allowed_C: NDArray[np.bool_]) -> int:
    """Returns how many candidates a request may go to."""
    count = 0
    for c in range(len(allowed_C)):
        if allowed_C[c]:
            count += 1
    return count


def best_allowed(score_C: NDArray[np.float64], allowed_C: NDArray[np.bool_]) -> int:
    """Returns the first allowed row of the highest finite score; -1 if there is none."""
    best = -1
    for c in range(len(score_C)):
        if not allowed_C[c] or not math.isfinite(score_C[c]):
            continue
        if best < 0 or score_C[c] > score_C[best]:
            best = c
    return best
