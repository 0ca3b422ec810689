"""The decision as one function of plain arrays: mask, admission, prediction, scores, choice.

`decide_request` is what a router calls for a request (`router.bound`); the simulator calls `decide`
and the kernels before it, between which it counts what it refused. Both compile these functions.

Shape letters: L the three rows of a load, C candidates, F features, P parameters, T tiers, R
results.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from router import features, home, kernels, picker, pressure, safety, seat
from router.dqn import network
from router.policies import scores, table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from router.dqn.snapshot import Weights
    from router.features import FeatureScratch
    from router.fleet import FleetArrays
    from router.ledger import LoadArrays
    from router.policies.scores import Query, Scratch

DQN_ROW: Final = table.ROW[table.DQN]
SCHEDULED_ROW: Final = table.ROW["scheduled-price"]
HAS_PRICE: Final = tuple(entry.has_price for entry in table.TABLE)
"""By row, whether a target's pressure is felt."""

NOTHING_ALLOWED: Final = -1
"""No usable candidate serves what the request allows."""
REFUSED: Final = -2
"""Even the fastest allowed candidate would miss the deadline, by admission's factor."""
NOT_FINITE: Final = -3
"""An allowed candidate's score is no finite number: the policy is not to be trusted."""

RESULTS: Final = (
    "action",
    "allowed_count",
    "predicted_s",
    "least_s",
    "idle_s",
    "rescue_s",
    "largest_tier",
    "stay",
)
(
    ACTION, ALLOWED_COUNT, PREDICTED_S, LEAST_S, IDLE_S, RESCUE_S, LARGEST_TIER, STAY,
) = range(len(RESULTS))  # fmt: skip
"""Places of `Board.result_R`: the best finite candidate (-1: none; there is one beside NOT_FINITE
too), how many were allowed, the predicted latency of the action, the least predicted latency that
admission saw, and the least with nothing under way (both when it refused), the least latency a
rescue from the action could have (`safety.least_rescue_s`; infinite: no smaller tier is allowed),
the largest allowed tier, what became of the request's conversation if that has a seat
(`seat.Stay`, else infinite)."""


class Board(NamedTuple):
    """All arrays of a decision that stay where they are between two requests.

    Attributes:
        fleet: candidates.
        own: load this router sent itself.
        others: load all others sent.
        seen: their sum, brought up to date by every decision.
        excluded_C: candidates closed to the request besides (a retry's failed ones).
        allowed_C: candidates the request may go to, as it stays at home if it can.
        usable_C: the fleet's availability while it stays there (`router.home`).
        params_P: a score kernel's parameters, and its memory; a network's: see `decide`.
        weights: of a network; others do not read them.
        scratch: working space of the features.
        features_CF: the features a network read.
        decided: predictions and scores.
        picked_T: last candidate an endpoint picker took of each tier, -1 at first.
        rescue_C: working space.
        result_R: scalars that are known afterwards, see RESULTS.
    """

    fleet: FleetArrays
    own: LoadArrays
    others: LoadArrays
    seen: LoadArrays
    excluded_C: NDArray[np.bool_]
    allowed_C: NDArray[np.bool_]
    usable_C: NDArray[np.float64]
    params_P: NDArray[np.float64]
    weights: Weights
    scratch: FeatureScratch
    features_CF: NDArray[np.float32]
    decided: Scratch
    picked_T: NDArray[np.int64]
    rescue_C: NDArray[np.float64]
    result_R: NDArray[np.float64]


def decide(
    row: int,
    fleet: FleetArrays,
    load: LoadArrays,
    own: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    weights: Weights,
    scratch: FeatureScratch,
    features_CF: NDArray[np.float32],
    s: Scratch,
    every: bool,
) -> int:
    """Returns the allowed candidate that a policy scores highest, -1 if there is none.

    Args:
        row: of the policy in the table.
        fleet: candidates.
        load: outstanding load as seen.
        own: the part of it that is this router's.
        allowed_C: candidates the request may go to.
        query: the request and the traffic.
        params_P: a score kernel's parameters, and its memory; a network's are those of the price it
            corrects and, if it has one, of its scheduled price.
        weights: of a network; others do not read them.
        scratch: working space of the features.
        features_CF: the features a network read.
        s: predictions and scores; predictions may lie where `scratch.seen` has them.
        every: a network looks at every candidate, however large the fleet is.
    """
    if row == DQN_ROW:
        short = features.compute_features(
            fleet, load, own, allowed_C, query, params_P, scratch, every, features_CF
        )
        if short:
            network.listed_q_values(
                np.asarray(features_CF),
                np.asarray(allowed_C),
                np.asarray(scratch.listed.weight_C),
                np.asarray(scratch.seen.score_C),
                weights.w1_FH,
                weights.b1_H,
                weights.w2_GH,
                weights.b2_H,
                weights.w3_P,
                weights.b3,
                np.asarray(s.score_C),
            )
        else:
            network.q_values(
                np.asarray(features_CF),
                np.asarray(allowed_C),
                np.asarray(scratch.seen.score_C),
                weights.w1_FH,
                weights.b1_H,
                weights.w2_GH,
                weights.b2_H,
                weights.w3_P,
                weights.b3,
                np.asarray(s.score_C),
            )
    else:
        scores.predict(fleet, load, query, s)
        table.score(row, fleet, load, allowed_C, query, params_P, s)
    if HAS_PRICE[row]:
        if query.is_small > 0.0:
            pressure.take_small(fleet, allowed_C, s)
        elif query.pressure + query.log_price != 0.0:
            charge_more(row, fleet, query, features_CF, scratch.seen, s)
    return kernels.best_allowed(s.score_C, allowed_C)


def charge_more(
    row: int,
    fleet: FleetArrays,
    query: Query,
    features_CF: NDArray[np.float32],
    seen: Scratch,
    s: Scratch,
) -> None:
    """Charges device time by the factor of the query's pressure and priority, in place of once.

    What a candidate is charged is what it is worth less its score. `seen` has the price score that
    a network corrects. What it was charged there is all that a high class can be given back: the
    prior, which is on slower devices or on reckoned load, may charge more, and a request must not
    earn by the time it takes. Of soft deadlines the prior's charge is not among the features, so
    they are charged by that score alone.
    """
    more = math.exp(query.pressure + query.log_price) - 1.0
    quality_C = fleet.quality_KC[query.task]
    found = s
    slack_s = query.slack_s
    decay_s = query.soft_decay_s
    if row == DQN_ROW:
        found = seen
    elif row == SCHEDULED_ROW and query.slowdown > 1.0:  # it scored in slower devices' own time
        slack_s /= query.slowdown
        decay_s /= query.slowdown
    for c in range(len(s.score_C)):
        share = scores.reward_share(
            found.probability_C[c], found.predicted_s_C[c], slack_s, decay_s
        )
        charge = quality_C[c] * share - found.score_C[c]
        if row == DQN_ROW and decay_s <= 0.0:
            # What a shortlist left out has no features, and is never chosen.
            prior = float(features_CF[c][features.PRIOR_CHARGE])
            charge = prior if more > 0.0 else min(prior, charge)
        s.score_C[c] -= more * max(0.0, charge)


def stay_seated(
    row: int,
    fleet: FleetArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    scratch: FeatureScratch,
    s: Scratch,
    action: int,
    seat_row: int,
    margin: float,
) -> int:
    """Returns whether a conversation stays on its seat after a decision (`router.seat.stay`).

    Args:
        row: of the policy in the table.
        fleet: candidates.
        allowed_C: candidates the request may go to.
        query: the request and the traffic.
        scratch: working space of the features; a network's has the scores of the price in it.
        s: predictions and scores.
        action: the choice.
        seat_row: the seat.
        margin: worth that staying may cost.
    """
    score_C = s.score_C
    if row == DQN_ROW and score_C[seat_row] <= network.NOT_LISTED:
        score_C = scratch.seen.score_C  # a shortlist left it out: by the price then
    return seat.stay(
        fleet,
        allowed_C,
        query,
        s.predicted_s_C,
        score_C,
        HAS_PRICE[row],
        action,
        seat_row,
        margin,
    )


def decide_request(
    b: Board,
    row: int,
    picker_number: int,
    every: bool,
    query: Query,
    quality_floor: float,
    tier_pin: int,
    ramp_draw: float,
    pick_draw: float,
    admission_slack_s: float,
    admission_factor: float,
    seat_row: int,
    cached_tokens: float,
    margin: float,
) -> int:
    """Returns the candidate for a request, or the code (below zero) of what left it without one.

    Args:
        b: all arrays.
        row: of the policy in the table.
        picker_number: endpoint picker that chooses inside the policy's tier; 0 = none.
        every: a network looks at every candidate, however large the fleet is.
        query: the request and the traffic.
        quality_floor: lowest quality accepted.
        tier_pin: only tier allowed; -1 = any.
        ramp_draw: uniform random number that opens ramping candidates.
        pick_draw: uniform random number of the picker.
        admission_slack_s: time left as admission counts it, seconds.
        admission_factor: on admission's predictions; 0 = do not ask.
        seat_row: candidate that served the request's conversation last; -1 = none.
        cached_tokens: prompt tokens it probably has cached.
        margin: worth that staying there may cost, in units of quality; below 0: it stays nowhere.
    """
    if seat_row >= 0:
        b.fleet.cached_C[seat_row] = cached_tokens
    code = _decide_seated(
        b, row, picker_number, every, query, quality_floor, tier_pin, ramp_draw, pick_draw,
        admission_slack_s, admission_factor, seat_row, margin,
    )  # fmt: skip
    if seat_row >= 0:
        b.fleet.cached_C[seat_row] = 0.0
    return code


def _decide_seated(
    b: Board,
    row: int,
    picker_number: int,
    every: bool,
    query: Query,
    quality_floor: float,
    tier_pin: int,
    ramp_draw: float,
    pick_draw: float,
    admission_slack_s: float,
    admission_factor: float,
    seat_row: int,
    margin: float,
) -> int:
    """Does what `decide_request` says, with what is cached on the seat in the fleet."""
    result_R = b.result_R
    for place in range(len(result_R)):
        result_R[place] = math.inf
    result_R[ACTION] = -1.0
    for c in range(len(b.allowed_C)):
        b.seen.in_flight_C[c] = b.own.in_flight_C[c] + b.others.in_flight_C[c]
        b.seen.waiting_prompt_tokens_C[c] = (
            b.own.waiting_prompt_tokens_C[c] + b.others.waiting_prompt_tokens_C[c]
        )
        b.seen.remaining_output_tokens_C[c] = (
            b.own.remaining_output_tokens_C[c] + b.others.remaining_output_tokens_C[c]
        )
    count = kernels.allowed_mask(
        b.fleet, query.task, quality_floor, tier_pin, ramp_draw, b.allowed_C
    )
    largest = -1
    for c in range(len(b.allowed_C)):
        if b.allowed_C[c] and b.excluded_C[c]:
            b.allowed_C[c] = False
            count -= 1
        if b.allowed_C[c]:
            largest = max(largest, b.fleet.tier_C[c])
    result_R[ALLOWED_COUNT] = count
    result_R[LARGEST_TIER] = largest
    if count == 0:
        return NOTHING_ALLOWED
    if admission_factor > 0.0 and not safety.admit(
        b.fleet,
        b.seen,
        b.allowed_C,
        admission_slack_s,
        query.prompt_tokens,
        query.event_tokens,
        admission_factor,
        b.decided.predicted_s_C,
        query.token_interval_s,
    ):
        for c in range(len(b.allowed_C)):
            if b.allowed_C[c]:
                result_R[LEAST_S] = min(result_R[LEAST_S], b.decided.predicted_s_C[c])
        result_R[IDLE_S] = safety.least_idle_s(
            b.fleet,
            b.scratch.load,
            b.allowed_C,
            query.prompt_tokens,
            query.event_tokens,
            b.rescue_C,
            query.token_interval_s,
        )
        return REFUSED
    fleet = b.fleet
    is_seat_open = seat_row >= 0 and b.allowed_C[seat_row]
    if home.stays(
        b.fleet,
        b.seen,
        b.allowed_C,
        query.slack_s,
        query.prompt_tokens,
        query.event_tokens,
        b.decided.predicted_s_C,
        query.token_interval_s,
    ):
        fleet = home.at_home(b.fleet, b.usable_C)
        query = home.own_traffic(query)
    if is_seat_open:
        b.allowed_C[seat_row] = True  # of a conversation that stays, no two routers have a part
    result_R[ALLOWED_COUNT] = kernels.count_allowed(b.allowed_C)
    action = decide(
        row,
        fleet,
        b.seen,
        b.own,
        b.allowed_C,
        query,
        b.params_P,
        b.weights,
        b.scratch,
        b.features_CF,
        b.decided,
        every,
    )
    if picker_number > 0 and action >= 0:
        tier = b.fleet.tier_C[action]
        action = picker.pick(
            picker_number,
            b.fleet,
            b.seen,
            b.allowed_C,
            query,
            tier,
            b.picked_T,
            pick_draw,
            b.rescue_C,
        )
    if seat_row >= 0 and margin >= 0.0 and action >= 0:
        found = stay_seated(
            row, b.fleet, b.allowed_C, query, b.scratch, b.decided, action, seat_row, margin
        )
        result_R[STAY] = found
        if found == seat.KEPT:
            action = seat_row
    is_finite = action >= 0
    for c in range(len(b.allowed_C)):
        if b.allowed_C[c] and not math.isfinite(b.decided.score_C[c]):
            is_finite = False
    result_R[ACTION] = action
    if action >= 0:
        result_R[PREDICTED_S] = b.decided.predicted_s_C[action]
        result_R[RESCUE_S] = safety.least_rescue_s(
            b.fleet,
            b.seen,
            b.allowed_C,
            action,
            query.prompt_tokens,
            query.event_tokens,
            b.rescue_C,
            query.token_interval_s,
        )
    return action if is_finite else NOT_FINITE
