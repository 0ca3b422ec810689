"""Why a candidate was chosen: what a decision rested on, kept small, and the numbers found again.

A decision is a function of its inputs, so the same kernels find the same numbers whenever they are
asked, bit by bit, whatever has become of the fleet and of the loads.

Shape letters: L the three rows of a load, C candidates, D devices, F features, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from router import kernels
from router.bound import BoundDecision, Rule, bind_plain
from router.decision import DQN_ROW
from router.picker import NO_PICKER
from router.policies.dqn import PRICE_DEFAULTS_P
from router.seat import NOWHERE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from router.bound import Bind
    from router.decision import Board
    from router.desk import Asked
    from router.fleet import Fleet


class Inputs(NamedTuple):
    """What a decision rested on; all but `own_LC` is shared with other decisions and never changed.

    Attributes:
        fleet: candidates as their profiles have them.
        slowness_D: factor on the profile's times.
        availability_C: shares of traffic that candidates might get.
        home_C: candidates at home.
        own_LC: load this router had sent, rows in the order of `LoadArrays`.
        others_LC: load all others had sent.
        rule: of the policy that decided, with its memory as it was.
        asked: the request and the traffic.
    """

    fleet: Fleet
    slowness_D: NDArray[np.float64]
    availability_C: NDArray[np.float64]
    home_C: NDArray[np.bool_]
    own_LC: NDArray[np.float64]
    others_LC: NDArray[np.float64]
    rule: Rule
    asked: Asked


@dataclass(frozen=True, slots=True)
class Explanation:
    """All numbers of a decision, per candidate.

    Attributes:
        allowed_C: whether the request might go there.
        away_C: whether it was left to other routers, as the request stayed at home.
        score_C: the policy's scores, -inf where it might not.
        predicted_s_C: predicted time to the deadline's event, seconds.
        on_time_probability_C: predicted probability of making the deadline, 0 to 1.
        in_flight_C: requests under way as seen.
        features_CF: what a network read; None if a kernel gave the scores.
    """

    allowed_C: NDArray[np.bool_]
    away_C: NDArray[np.bool_]
    score_C: NDArray[np.float64]
    predicted_s_C: NDArray[np.float64]
    on_time_probability_C: NDArray[np.float64]
    in_flight_C: NDArray[np.float64]
    features_CF: NDArray[np.float32] | None


class Larger(NamedTuple):
    """What it would have taken to get a larger tier.

    Attributes:
        slack_s: least time to the deadline, on the same load, to a hundredth; None if none up to
            some 18 times the time that was left would have been enough.
        if_idle: whether it would have been chosen with nothing under way.
    """

    slack_s: float | None
    if_idle: bool


def _left_to_others(board: Board, asked: Asked) -> NDArray[np.bool_]:
    """Returns which candidates a request that stayed at home might else have gone to, bool [C]."""
    fleet = board.fleet
    might_C = np.zeros_like(fleet.home_C)
    away_C = board.allowed_C & ~fleet.home_C
    if asked.seat.row != NOWHERE:  # open to its conversation wherever it is
        away_C[asked.seat.row] = False
    if not away_C.any():
        kernels.allowed_mask(
            fleet, asked.query.task, asked.quality_floor, asked.tier_pin, asked.ramp_draw, might_C
        )
    return might_C & ~board.allowed_C


class Explainer:
    """Takes decisions again, on arrays of its own that it keeps for the next one."""

    def __init__(self, bind: Bind = bind_plain) -> None:
        """Starts without a fleet; `bind` must be what bound the decisions."""
        self._bind_to = bind
        self._profiled: Fleet | None = None
        self._slowness_D: NDArray[np.float64]
        self._own_LC: NDArray[np.float64]
        self._others_LC: NDArray[np.float64]
        self._seen_LC: NDArray[np.float64]
        self._bound: dict[tuple[int, bool, int, int], BoundDecision]

    def explain(self, inputs: Inputs) -> Explanation:
        """Returns what a decision found."""
        board = self._decide_again(inputs, inputs.rule)
        return Explanation(
            allowed_C=board.allowed_C.copy(),
            away_C=_left_to_others(board, inputs.asked),
            score_C=np.where(board.allowed_C, board.decided.score_C, -np.inf),
            predicted_s_C=board.decided.predicted_s_C.copy(),
            on_time_probability_C=board.decided.probability_C.copy(),
            in_flight_C=board.seen.in_flight_C.copy(),
            features_CF=board.features_CF.copy() if inputs.rule.row == DQN_ROW else None,
        )

    def for_larger_tier(self, inputs: Inputs, tier: int) -> Larger:
        """Returns what it would have taken to get a tier larger than this one, all else the same.

        Args:
            inputs: what the decision rested on.
            tier: index of the tier that was chosen.
        """

        def is_larger(taken: Inputs) -> bool:
            action = self._action(taken)
            return action >= 0 and int(taken.fleet.arrays.tier_C[action]) > tier

        def with_slack(slack_s: float) -> Inputs:
            asked = inputs.asked
            query = asked.query._replace(slack_s=slack_s)
            return inputs._replace(asked=asked._replace(query=query))

        idle = inputs._replace(
            own_LC=np.zeros_like(inputs.own_LC), others_LC=np.zeros_like(inputs.others_LC)
        )
        too_short_s = inputs.asked.query.slack_s
        for _ in range(_SLACK_STEPS):
            enough_s = too_short_s * _SLACK_FACTOR
            if is_larger(with_slack(enough_s)):
                break
            too_short_s = enough_s
        else:
            return Larger(None, is_larger(idle))
        while enough_s - too_short_s > _SLACK_ERROR * enough_s:
            middle_s = (too_short_s + enough_s) / 2.0
            if is_larger(with_slack(middle_s)):
                enough_s = middle_s
            else:
                too_short_s = middle_s
        return Larger(enough_s, is_larger(idle))

    def features(self, inputs: Inputs) -> NDArray[np.float32]:
        """Returns the features of a decision [C, F], whatever policy made it, until the next call.

        Where a network decided they are what it read; else what one would have read that corrects
        the default price. Those of candidates that were not on a shortlist are among them.
        """
        rule = inputs.rule if inputs.rule.row == DQN_ROW else _UNTRAINED
        return self._decide_again(inputs, rule._replace(every=True)).features_CF

    def _decide_again(self, inputs: Inputs, rule: Rule) -> Board:
        """Returns the arrays of a decision after it."""
        return self.decide_by(inputs, rule)[1]

    def _action(self, inputs: Inputs) -> int:
        return self.decide_by(inputs, inputs.rule)[0]

    def decide_by(self, inputs: Inputs, rule: Rule) -> tuple[int, Board]:
        """Takes a decision again by any rule, endpoint pickers aside.

        Returns:
            The row it chose, or a code of `router.decision` below 0, and its arrays until the next
            call.
        """
        if inputs.fleet is not self._profiled:
            self._sit_down(inputs.fleet)
        if inputs.slowness_D is not self._slowness_D:
            self._slowness_D = inputs.slowness_D
            self._fleet.copy_times(inputs.fleet.with_slowness(inputs.slowness_D))
        self._fleet.arrays.availability_C[:] = inputs.availability_C
        self._fleet.arrays.home_C[:] = inputs.home_C
        self._own_LC[:] = inputs.own_LC
        self._others_LC[:] = inputs.others_LC
        bound = self._bind(rule)
        bound.rule.params_P[:] = rule.params_P
        asked = inputs.asked
        action = bound.decide(
            asked.query, asked.quality_floor, asked.tier_pin, asked.ramp_draw, 0.0, 0.0, 0.0,
            asked.seat,
        )  # fmt: skip
        return action, bound.board

    def _sit_down(self, fleet: Fleet) -> None:
        """Makes the arrays of a fleet."""
        self._profiled, self._fleet, self._slowness_D = fleet, fleet.copy(), fleet.slowness_D
        self._own_LC, self._others_LC, self._seen_LC = np.zeros((3, 3, fleet.candidate_count))
        self._bound = {}

    def _bind(self, rule: Rule) -> BoundDecision:
        """Returns a decision by a rule whose parameters are still to be filled in."""
        # What is bound holds its weights, so no others can have their identity.
        key = (rule.row, rule.every, id(rule.weights), len(rule.params_P))
        bound = self._bound.get(key)
        if bound is None:
            if len(self._bound) >= _MOST_BOUND:
                self._bound.clear()
            # The picker's choice is known.
            own = rule._replace(params_P=rule.params_P.copy(), picker=NO_PICKER)
            load = (self._own_LC, self._others_LC, self._seen_LC)
            bound = self._bound[key] = BoundDecision(own, self._fleet.arrays, *load, self._bind_to)
        return bound


_UNTRAINED = Rule(DQN_ROW, PRICE_DEFAULTS_P)
_SLACK_FACTOR, _SLACK_STEPS, _SLACK_ERROR = 1.2, 16, 0.01
_MOST_BOUND = 4
"""Rules whose arrays are kept: of the policy in use and its fallback, and those just before."""
