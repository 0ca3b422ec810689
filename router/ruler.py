"""One ruler for every policy: what a choice is worth, and what its device time costs the others.

Policies that share devices cannot be told apart by what they earn: one that takes the largest tier
for itself slows the answers of all, its own only a little. So its choices are charged for the
device time they take, at the price that it had at that moment. The price is that of the policy
`price` at its defaults, raised by the pressure that targets made (`router.pressure`): the dual of
what the devices and the targets allow, read from the load that the decision itself saw.

Shape letters: C candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from router.bound import Bind, Rule, bind_plain
from router.decision import ACTION
from router.explanation import Explainer, Inputs
from router.policies import scores
from router.policies.dqn import PRICE_DEFAULTS_P
from router.policies.table import ROW

HIGHEST_CHARGE = 1.0
"""No choice is charged more than the best answer earns."""


class Measured(NamedTuple):
    """A choice by the ruler.

    Attributes:
        worth: quality x P(on time) there, 0 to 1.
        charge: price of the device time, 0 to HIGHEST_CHARGE.
        best: value of the best choice that there was, -1 to 1. It says how good the moment was,
            and not what was chosen.
    """

    worth: float
    charge: float
    best: float

    @property
    def value(self) -> float:
        """What it is worth in all, -1 to 1."""
        return self.worth - self.charge


class Ruler:
    """Measures choices, on arrays of its own."""

    def __init__(self, bind: Bind = bind_plain) -> None:
        """Takes how decisions are bound."""
        self._explainer = Explainer(bind)
        self._rule = Rule(ROW["price"], np.append(PRICE_DEFAULTS_P, 0.0))

    def measure(self, inputs: Inputs, row: int) -> Measured:
        """Returns what a choice was worth when it was made.

        Args:
            inputs: what the decision rested on.
            row: the candidate.
        """
        asked = inputs.asked
        # That the smallest tier alone is to be taken is no part of the price.
        query = asked.query._replace(is_small=0.0)
        asked = asked._replace(query=query)
        _, board = self._explainer.decide_by(inputs._replace(asked=asked), self._rule)
        found = board.decided
        share = scores.reward_share(
            float(found.probability_C[row]),
            float(found.predicted_s_C[row]),
            query.slack_s,
            query.soft_decay_s,
        )
        worth = float(board.fleet.quality_KC[query.task][row]) * share
        charge = worth - float(found.score_C[row])
        action = int(board.result_R[ACTION])
        best = float(found.score_C[action]) if action >= 0 else 0.0
        return Measured(
            worth, min(HIGHEST_CHARGE, max(0.0, charge)), min(1.0, max(-HIGHEST_CHARGE, best))
        )
