"""Where a router decides from: the arrays it sees, and the policies that decide on them.

Shape letters: L the three rows of a load, C candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from router import safety
from router.bound import BoundDecision, Rule, bind_plain
from router.decision import ACTION, ALLOWED_COUNT, PREDICTED_S, RESCUE_S, STAY
from router.exploration import Exploration, others
from router.policies.table import ROW, STATIC, TABLE
from router.seat import KEPT, NO_SEAT, Seat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from router.bound import Bind
    from router.decision import Board
    from router.fleet import FleetArrays
    from router.policies.scores import Query
    from router.policy import Policy


class Asked(NamedTuple):
    """A request as it is put to a policy.

    Attributes:
        query: the request and the traffic; its draw is the policy's own.
        quality_floor: lowest quality accepted.
        tier_pin: only tier allowed; -1 = any.
        ramp_draw: uniform random number that opens ramping candidates.
        admission_slack_s: time left as admission counts it, seconds.
        admission_factor: on admission's predictions; 0 = all are admitted.
        seat: where the request's conversation was served last.
    """

    query: Query
    quality_floor: float
    tier_pin: int
    ramp_draw: float
    admission_slack_s: float = 0.0
    admission_factor: float = 0.0
    seat: Seat = NO_SEAT


class Drawn(NamedTuple):
    """A choice and how it came about.

    Attributes:
        action: row of the chosen candidate.
        probability: with which this action was drawn, (0, 1].
        explored: True if exploration made the choice.
        other_count: candidates that might have been explored.
    """

    action: int
    probability: float
    explored: bool
    other_count: int = 0


class Desk:
    """Decides for one request after the other, on arrays that others change in place."""

    def __init__(
        self,
        fleet: FleetArrays,
        own_LC: NDArray[np.float64],
        others_LC: NDArray[np.float64],
        seen_LC: NDArray[np.float64],
        rng: np.random.Generator,
        bind: Bind = bind_plain,
    ) -> None:
        """Takes what `BoundDecision` binds and how, and the policies' dice."""
        self._arrays = (fleet, own_LC, others_LC, seen_LC, bind)
        self._rng = rng
        self._bound: dict[Policy, BoundDecision] = {}
        self._looking: BoundDecision | None = None
        self.asked: Asked
        """What is asked; with the policy's own draw once it was."""
        self.bound: BoundDecision
        """The decision of the policy asked last."""
        self.rule: Rule
        """Its rule, with its memory as it was before."""

    def ask(self, policy: Policy) -> int:
        """Returns the candidate of a policy for what is `asked`, or a code of `router.decision`.

        Raises:
            TypeError: the policy is not one of the table.
        """
        asked = self.asked
        bound = self.bound = self._bound.get(policy) or self._bind(policy)
        rule = self.rule = bound.rule
        entry = TABLE[rule.row]
        if entry.memory:
            self.rule = rule._replace(params_P=rule.params_P.copy())
        if entry.draws:
            draw = float(self._rng.random())
            asked = self.asked = asked._replace(query=asked.query._replace(draw=draw))
        return bound.decide(
            asked.query,
            asked.quality_floor,
            asked.tier_pin,
            asked.ramp_draw,
            float(self._rng.random()) if rule.picker else 0.0,
            asked.admission_slack_s,
            asked.admission_factor,
            asked.seat,
        )

    def look(self, asked: Asked) -> Board:
        """Returns what any policy would see of a request, until the next call.

        Good in it are the mask, the load and the predicted times; nothing but the mask if it is
        empty. A request that is looked for another place is nowhere at home. What was asked before
        stays as it was.
        """
        bound = self._looking
        if bound is None:
            fleet = self._arrays[0]
            everywhere = fleet._replace(home_C=np.ones_like(fleet.home_C))
            bound = self._looking = BoundDecision(_CHEAPEST, everywhere, *self._arrays[1:])
        bound.decide(
            asked.query, asked.quality_floor, asked.tier_pin, asked.ramp_draw, 0.0, 0.0, 0.0,
            asked.seat,
        )  # fmt: skip
        return bound.board

    def draw(self, action: int, exploration: Exploration | None = None) -> Drawn:
        """Returns the last policy's choice, or another one that is explored.

        A request that stays on its conversation's seat is not explored with, nor is a policy that
        draws evenly: it explores by itself.

        Args:
            action: what the policy chose.
            exploration: how much is explored; None: this decision is closed to it.
        """
        if self.bound.result_R[STAY] == KEPT:
            return Drawn(action, 1.0, False)
        if TABLE[self.bound.rule.row].even:
            return Drawn(action, 1.0 / self.bound.result_R[ALLOWED_COUNT], False)
        if exploration is None or not exploration.share:
            return Drawn(action, 1.0, False)
        board, query = self.bound.board, self.asked.query
        rows = others(
            action, board.allowed_C, board.decided.predicted_s_C, query.slack_s, exploration.on_time
        )
        if not len(rows):
            return Drawn(action, 1.0, False)
        if self._rng.random() >= exploration.share:
            return Drawn(action, 1.0 - exploration.share, False, len(rows))
        action = int(rows[self._rng.integers(len(rows))])
        board.result_R[PREDICTED_S] = board.decided.predicted_s_C[action]
        board.result_R[RESCUE_S] = safety.least_rescue_s(
            board.fleet, board.seen, board.allowed_C, action, query.prompt_tokens,
            query.event_tokens, board.rescue_C, query.token_interval_s,
        )  # fmt: skip
        return Drawn(action, exploration.share / len(rows), True, len(rows))

    def is_open(self, row: int) -> bool:
        """Returns whether the last decision could have taken a row."""
        allowed_C = self.bound.board.allowed_C
        return 0 <= row < len(allowed_C) and bool(allowed_C[row])

    def best_finite(self) -> int:
        """Returns the best row by the finite scores of the last decision, -1 if none is."""
        return int(self.bound.result_R[ACTION])

    def _bind(self, policy: Policy) -> BoundDecision:
        bound = BoundDecision(Rule.of(policy), *self._arrays)
        if len(self._bound) >= _MOST_BOUND:
            self._bound.clear()
        self._bound[policy] = bound
        return bound


_CHEAPEST = Rule(ROW[STATIC], np.zeros(1))
_MOST_BOUND = 4
"""Policies whose arrays are kept: the one in use and its fallback, and those just before."""
