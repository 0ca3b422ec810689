"""Why a candidate was chosen: what a decision rested on, kept small, and the numbers found again.

A decision is a function of its inputs, so the same kernels find the same numbers whenever they are
asked, bit by bit, whatever has become of the fleet and of the loads.

Shape letters: L the three rows of a load, C candidates, D devices, F features, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from router.bound import BoundDecision, Rule
from router.decision import DQN_ROW
from router.picker import NO_PICKER
from router.policies.dqn import PRICE_DEFAULTS_P

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from router.decision import Board
    from router.desk import Asked
    from router.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a decision rested on; all but `own_LC` is shared with other decisions and never changed.

    Attributes:
        fleet: candidates as their profiles have them.
        slowness_D: factor on the profile's times.
        availability_C: shares of traffic that candidates might get.
        own_LC: load this router had sent, rows in the order of `LoadArrays`.
        others_LC: load all others had sent.
        rule: of the policy that decided, with its memory as it was.
        asked: the request and the traffic.
    """

    fleet: Fleet
    slowness_D: NDArray[np.float64]
    availability_C: NDArray[np.float64]
    own_LC: NDArray[np.float64]
    others_LC: NDArray[np.float64]
    rule: Rule
    asked: Asked


@dataclass(frozen=True, slots=True)
class Explanation:
    """All numbers of a decision, per candidate.

    Attributes:
        allowed_C: whether the request might go there.
        score_C: the policy's scores, -inf where it might not.
        predicted_s_C: predicted time to the deadline's event, seconds.
        on_time_probability_C: predicted probability of making the deadline, 0 to 1.
        in_flight_C: requests under way as seen.
        features_CF: what a network read; None if a kernel gave the scores.
    """

    allowed_C: NDArray[np.bool_]
    score_C: NDArray[np.float64]
    predicted_s_C: NDArray[np.float64]
    on_time_probability_C: NDArray[np.float64]
    in_flight_C: NDArray[np.float64]
    features_CF: NDArray[np.float32] | None


def explain(inputs: Inputs) -> Explanation:
    """Returns what a decision found."""
    board = _decided_again(inputs, inputs.rule)
    return Explanation(
        allowed_C=board.allowed_C,
        score_C=np.where(board.allowed_C, board.decided.score_C, -np.inf),
        predicted_s_C=board.decided.predicted_s_C,
        on_time_probability_C=board.decided.probability_C,
        in_flight_C=board.seen.in_flight_C,
        features_CF=board.features_CF if inputs.rule.row == DQN_ROW else None,
    )


def features_of(inputs: Inputs) -> NDArray[np.float32]:
    """Returns the features of a decision [C, F], whatever policy made it.

    Where a network decided they are what it read; else what one would have read that corrects the
    default price.
    """
    rule = inputs.rule if inputs.rule.row == DQN_ROW else Rule(DQN_ROW, PRICE_DEFAULTS_P)
    return _decided_again(inputs, rule).features_CF


def _decided_again(inputs: Inputs, rule: Rule) -> Board:
    """Returns the arrays of a decision after it."""
    fleet = inputs.fleet.with_slowness(inputs.slowness_D).with_availability(inputs.availability_C)
    # The picker's choice is known, and a policy's memory must stay as it was.
    rule = rule._replace(params_P=rule.params_P.copy(), picker=NO_PICKER)
    seen_LC = np.zeros_like(inputs.own_LC)
    bound = BoundDecision(rule, fleet.arrays, inputs.own_LC, inputs.others_LC, seen_LC)
    asked = inputs.asked
    bound.decide(asked.query, asked.quality_floor, asked.tier_pin, asked.ramp_draw, 0.0, 0.0, 0.0)
    return bound.board
