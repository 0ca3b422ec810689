"""The safety net around every policy: admission, and when and where to rescue a request.

Kernels in the manner of `router.kernels`, used by the live services and compiled by the simulator.
All of them rest on predictions, which have errors; so each acts only with a margin on its own side:
admission refuses only what would be late even if the prediction were too long by `optimism` (and
grows more cautious while what it admits is late, see `Caution`), a rescue goes only where the
prediction leaves `margin` to spare, and a request is given up as "about to miss" only if its
prediction, shortened by `optimism`, is still too late.

Shape letters: K tasks, C candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from router import kernels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays

SAME_DEVICE = 1.5
"""Factor on predictions for the device a request is rescued from."""

# How admission learns its caution, found by measuring overload, bursts and calm (ADR 9). Time is
# counted in deadlines: that is how long a decision takes to show.
TOLERATED_MISSES = 0.05
"""Share of misses among recent ends up to which the caution does not rise."""
RISE = 16.0
"""Rise of the logarithm of the factor per deadline, per share of misses beyond the tolerated."""
FALL = 0.01
"""Fall of the logarithm of the factor per deadline while requests are still being refused."""
QUIET_FALL = 0.05
"""The same once nothing has been refused for a whole deadline."""
LEAST_ENDS = 10.0
"""Recent ends below which a share of misses is taken as if there had been this many."""
SHORTEST_WINDOW_S = 1e-3
"""A deadline shorter than this is no measure of time to learn by."""


class SafetyLimits(NamedTuple):
    """How far predictions are trusted.

    Attributes:
        optimism: factor (0 to 1] on a prediction before something is declared hopeless.
        margin: factor (>= 1) on a prediction before something is declared safe.
        guard_s: time kept in hand for cancelling and dispatching again, seconds.
        pessimism: highest factor admission learns while deadlines are missed; `optimism` or less
            keeps it from learning.
    """

    optimism: float = 0.7
    margin: float = 1.25
    guard_s: float = 0.0
    pessimism: float = 1.75


@dataclass(slots=True)
class Caution:
    """What one router's admission has learned from how admitted hard requests ended.

    Kernels change it in place. The simulator keeps the same fields in a record per router.

    Attributes:
        raised: logarithm of the factor over `optimism`; 0 where deadlines are met.
        ended: recent ends of admitted requests, decaying by 1/e per deadline.
        missed: those of them that missed.
        at_s: when the above held, seconds.
        refused_s: time of the last refusal, seconds.
    """

    raised: float = 0.0
    ended: float = 0.0
    missed: float = 0.0
    at_s: float = 0.0
    refused_s: float = 0.0


def relax(caution: Caution, now_s: float, window_s: float) -> None:
    """Brings a caution to the present: it falls with time, and what ended fades.

    It falls slowly while requests are being refused: then the overload goes on, and each fall
    is a test that some requests pay for. It falls quickly once nothing was refused for a deadline.

    Args:
        caution: of the router, changed in place.
        now_s: the present, seconds; a time before `caution.at_s` changes nothing.
        window_s: deadline of the request at hand, as time from its arrival, seconds.
    """
    elapsed_s = now_s - caution.at_s
    if elapsed_s <= 0.0:
        return
    window_s = max(window_s, SHORTEST_WINDOW_S)
    quiet_s = max(0.0, now_s - max(caution.at_s, caution.refused_s + window_s))
    fall = (FALL * (elapsed_s - quiet_s) + QUIET_FALL * quiet_s) / window_s
    caution.raised = max(0.0, caution.raised - fall)
    kept = math.exp(-elapsed_s / window_s)
    caution.ended *= kept
    caution.missed *= kept
    caution.at_s = now_s


def learn_end(
    caution: Caution,
    now_s: float,
    window_s: float,
    missed: bool,
    optimism: float,
    pessimism: float,
) -> None:
    """Learns from the end of a request that was admitted with a hard deadline.

    Integral control: each miss raises the logarithm of the factor by RISE x (recent share of misses
    beyond the tolerated one) / (ends per deadline), time lets it fall (`relax`). The limit
    `pessimism` matters: what is decided now shows one deadline later, so without it the factor
    overshoots; the devices then run empty, policies take that for calm and choose larger tiers, and
    most requests are refused.

    Args:
        caution: of the router, changed in place.
        now_s: when it ended, seconds.
        window_s: its deadline, as time from its arrival, seconds.
        missed: late, or cut off by the deadline.
        optimism: factor the caution rests at.
        pessimism: highest factor.
    """
    relax(caution, now_s, window_s)
    caution.ended += 1.0
    if not missed:
        return
    caution.missed += 1.0
    ended = max(caution.ended, LEAST_ENDS)
    excess = caution.missed / ended - TOLERATED_MISSES
    if excess > 0.0 and pessimism > optimism:
        highest = math.log(pessimism / optimism)
        caution.raised = min(highest, caution.raised + RISE * excess / ended)


def admission_factor(caution: Caution, optimism: float) -> float:
    """Returns the factor admission puts on predictions; exactly `optimism` while none is raised."""
    return optimism * math.exp(caution.raised)


def target_factor(
    caution: Caution, optimism: float, pessimism: float, is_floored: bool, ratio: float
) -> float:
    """Returns the factor admission puts on predictions where a target is held.

    While tiers are left to step down to, nothing is refused but what has no hope: missing the
    target then makes requests smaller first (`router.pressure`). Once all go to the smallest tier,
    predictions are taken as they lately came true, and caution adds to that.

    Args:
        caution: of the router.
        optimism: what it rests at.
        pessimism: highest factor.
        is_floored: requests are held to the smallest tier.
        ratio: recent mean of observed over predicted latency (`slowdown.mean_ratio`).
    """
    if not is_floored:
        return optimism
    factor = admission_factor(caution, max(optimism, ratio))
    return min(factor, max(optimism, pessimism))


def in_reach(predicted_s: float, slack_s: float, factor: float) -> bool:
    """Returns whether a request of this predicted latency could be in time, by this factor."""
    return slack_s > 0.0 and factor * predicted_s <= slack_s


def predict_one(
    fleet: FleetArrays,
    load: LoadArrays,
    prompt_tokens: float,
    event_tokens: float,
    c: int,
    out_C: NDArray[np.float64],
    token_interval_s: float = 0.0,
) -> None:
    """Predicts one candidate's latency, seconds, into its place in `out_C`."""
    kernels.predict_latency_s(
        fleet,
        load,
        prompt_tokens,
        event_tokens,
        out_C,
        0.0,
        kernels.PERSISTENCE,
        c,
        c + 1,
        token_interval_s,
    )


def admit(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    slack_s: float,
    prompt_tokens: float,
    event_tokens: float,
    factor: float,
    scratch_C: NDArray[np.float64],
    token_interval_s: float = 0.0,
) -> bool:
    """Returns whether any allowed candidate could still answer in time.

    The first one that could settles it, so in calm traffic one prediction is made.

    Args:
        fleet: candidates.
        load: outstanding load.
        allowed_C: candidates the request may go to.
        slack_s: time left, seconds.
        prompt_tokens: of the request.
        event_tokens: predicted tokens until the deadline's event.
        factor: on the prediction (`admission_factor`); below 1, its errors admit.
        scratch_C: working space; afterwards the predicted latencies of what was looked at, seconds.
        token_interval_s: between the due times of two tokens, seconds; 0 = there is no schedule.

    Returns:
        False only if even `factor` x the least latency exceeds the slack. A soft deadline is never
        refused: do not ask.
    """
    for c in range(len(fleet.tier_C)):
        if not allowed_C[c]:
            continue
        predict_one(fleet, load, prompt_tokens, event_tokens, c, scratch_C, token_interval_s)
        if in_reach(scratch_C[c], slack_s, factor):
            return True
    return False


def least_idle_s(
    fleet: FleetArrays,
    idle: LoadArrays,
    allowed_C: NDArray[np.bool_],
    prompt_tokens: float,
    event_tokens: float,
    scratch_C: NDArray[np.float64],
    token_interval_s: float = 0.0,
) -> float:
    """Returns the least latency that allowed candidates would have with nothing under way, seconds.

    A deadline that is out of reach of it, too, is to blame itself, and the load is not.

    Args:
        fleet: candidates.
        idle: working space; no load afterwards.
        allowed_C: candidates the request may go to.
        prompt_tokens: of the request.
        event_tokens: predicted tokens until the deadline's event.
        scratch_C: working space.
        token_interval_s: between the due times of two tokens, seconds; 0 = there is no schedule.
    """
    least_s = math.inf
    for c in range(len(fleet.tier_C)):
        idle.in_flight_C[c] = 0.0
        idle.waiting_prompt_tokens_C[c] = 0.0
        idle.remaining_output_tokens_C[c] = 0.0
    for c in range(len(fleet.tier_C)):
        if allowed_C[c]:
            predict_one(fleet, idle, prompt_tokens, event_tokens, c, scratch_C, token_interval_s)
            least_s = min(least_s, scratch_C[c])
    return least_s


def least_rescue_s(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    action: int,
    prompt_tokens: float,
    event_tokens: float,
    scratch_C: NDArray[np.float64],
    token_interval_s: float = 0.0,
) -> float:
    """Returns the least latency predicted for a rescue from `action`, seconds.

    Over allowed smaller tiers; infinite if there is none. The load then is not the load now; the
    margin of `rescue_at_s` covers an ordinary rise.
    """
    least_s = math.inf
    for c in range(len(fleet.tier_C)):
        if not allowed_C[c] or fleet.tier_C[c] >= fleet.tier_C[action]:
            continue
        predict_one(fleet, load, prompt_tokens, event_tokens, c, scratch_C, token_interval_s)
        # Stretched as `choose_rescue` will do, or no rescue on one device would ever fit.
        stretch = SAME_DEVICE if fleet.device_C[c] == fleet.device_C[action] else 1.0
        least_s = min(least_s, stretch * scratch_C[c])
    return least_s


def rescue_at_s(least_s: float, slack_s: float, margin: float, guard_s: float) -> float:
    """Returns after how many seconds from now a rescue to a smaller tier would be just in time.

    That is slack - margin x `least_rescue_s` - guard. Returns -1 if that moment has passed, or if
    there is no smaller tier: then no timer is set.
    """
    moment_s = slack_s - margin * least_s - guard_s
    return moment_s if moment_s > 0.0 else -1.0


def remaining_latency_s(
    fleet: FleetArrays,
    load: LoadArrays,
    action: int,
    prompt_tokens: float,
    remaining_tokens: float,
    waiting: bool,
    token_interval_s: float = 0.0,
) -> float:
    """Predicts how long a dispatched request still takes, seconds, from the load with it in.

    A request that decodes needs `remaining_tokens` cycles of its device's active tiers; one that
    has no token yet also waits for the prompts before it, about half of those that wait, and its
    own. With a schedule of tokens, of which none has come, it is the time of the token that is
    latest against its due time, less what the schedule grants it (`kernels.granted_s`).
    """
    is_paced = token_interval_s > 0.0 and remaining_tokens > 1.0
    later = 0.0
    own_prompt_s = prompt_tokens * fleet.per_prompt_token_s_C[action] if waiting else 0.0
    total = own_prompt_s
    for j in fleet.peers_CP[action]:
        if j < 0:
            break
        if load.in_flight_C[j] <= 0.0:
            continue
        batch = min(load.in_flight_C[j], fleet.max_batch_C[j])
        cycles = remaining_tokens
        if j != action:
            cycles = min(cycles, load.remaining_output_tokens_C[j] / batch)
        iteration = fleet.step_s_C[j] + fleet.per_sequence_s_C[j] * batch
        total += cycles * iteration
        if is_paced:
            later += (cycles - min(1.0, cycles)) * iteration
        waiting_s = load.waiting_prompt_tokens_C[j] * fleet.per_prompt_token_s_C[j]
        if j == action:
            waiting_s = max(0.0, waiting_s - own_prompt_s)
        total += 0.5 * waiting_s
    if is_paced:
        total -= min(later, (remaining_tokens - 1.0) * token_interval_s)
    return float(total)


def about_to_miss(
    fleet: FleetArrays,
    load: LoadArrays,
    action: int,
    slack_s: float,
    prompt_tokens: float,
    remaining_tokens: float,
    waiting: bool,
    optimism: float,
    token_interval_s: float = 0.0,
) -> bool:
    """Returns whether a dispatched request is predicted to miss even by an optimistic reading."""
    left_s = remaining_latency_s(
        fleet, load, action, prompt_tokens, remaining_tokens, waiting, token_interval_s
    )
    return optimism * left_s > slack_s


def choose_rescue(
    fleet: FleetArrays,
    allowed_C: NDArray[np.bool_],
    action: int,
    task: int,
    slack_s: float,
    margin: float,
    predicted_s_C: NDArray[np.float64],
) -> int:
    """Returns the smaller-tier candidate to rescue to, or -1 if none would be in time.

    The highest quality whose predicted latency fits the slack with half of the margin to spare
    (the timer was set for the whole margin; the other half is for a timer that fires late and a
    load that has risen); among equals the fastest. The device the request is on has just been
    slower than predicted, so its predictions are stretched by `SAME_DEVICE`, in `predicted_s_C`.
    These must be made on the load without the request: it is about to be cancelled.
    """
    spare = 0.5 * (1.0 + margin)
    best = -1
    for c in range(len(fleet.tier_C)):
        if not allowed_C[c] or fleet.tier_C[c] >= fleet.tier_C[action]:
            continue
        if fleet.device_C[c] == fleet.device_C[action]:
            predicted_s_C[c] *= SAME_DEVICE
        if spare * predicted_s_C[c] > slack_s:
            continue
        if best < 0:
            best = c
            continue
        gain = fleet.quality_KC[task][c] - fleet.quality_KC[task][best]
        if gain > 0.0 or (gain == 0.0 and predicted_s_C[c] < predicted_s_C[best]):
            best = c
    return best
