"""States of a small fleet, and what a policy makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.decision import PREDICTED_S
from router.desk import Asked, Desk
from router.explanation import Explainer, Explanation, Inputs
from router.fleet import Fleet
from router.ledger import LoadArrays, zero_load
from router.policies.scores import Query
from router.policies.table import make_policy
from router.policy import Policy
from tests.unit.router import fleets

SMALL, MEDIUM, LARGE = 0, 1, 2
MARGIN = {"margin": 0.8}
"""The whole slack but for a reserve; the tuned margins give quality away to survive overload."""


@dataclass(frozen=True)
class Observation:
    """What is seen when a request is decided for.

    Attributes:
        fleet: candidates.
        load: what is outstanding, all of it this router's own.
        query: the request and the traffic.
        floor: lowest quality accepted.
        pin: only tier allowed; -1 = any.
    """

    fleet: Fleet
    load: LoadArrays
    query: Query
    floor: float = 0.0
    pin: int = -1


class Decided(NamedTuple):
    """A policy's choice, and its numbers as they are found again afterwards."""

    action: int
    predicted_s: float
    probability: float
    explored: bool
    found: Explanation


def observation(
    load: LoadArrays | None = None,
    *,
    device_count: int = 2,
    rate_rps: float = 1.0,
    fleet: Fleet | None = None,
    floor: float = 0.0,
    pin: int = -1,
    task: int = 0,
    slack_s: float = 0.4,
    prompt_tokens: float = 100.0,
    soft_decay_s: float = 0.0,
) -> Observation:
    """Returns an observation of a test fleet, idle unless a load is given."""
    fleet = fleet or fleets.fleet(device_count)
    length = (prompt_tokens, 8.0, 8.0)
    query = Query(task, slack_s, *length, soft_decay_s, 0.0, rate_rps, rate_rps, 0.0, 0.0)
    return Observation(fleet, load or zero_load(fleet.candidate_count), query, floor, pin)


class Chair:
    """One policy at a desk of its own: its memory and its dice go on from decision to decision."""

    def __init__(self, policy: Policy, seed: int = 1) -> None:
        """Sits down before any fleet is known."""
        self._policy = policy
        self._rng = np.random.default_rng(seed)
        self._fleet: Fleet | None = None

    def decide(self, seen: Observation, closed: NDArray[np.int64] | None = None) -> Decided:
        """Returns the policy's choice; `closed` rows are left out besides."""
        if seen.fleet is not self._fleet:
            self._fleet = seen.fleet
            self._own_LC, others_LC, seen_LC = np.zeros((3, 3, seen.fleet.candidate_count))
            self._others_LC = others_LC
            self.desk = Desk(seen.fleet.arrays, self._own_LC, others_LC, seen_LC, self._rng)
        self._own_LC[:] = seen.load
        desk = self.desk
        desk.asked = Asked(seen.query, seen.floor, seen.pin, float(self._rng.random()))
        if closed is not None:
            bound = desk._bound.get(self._policy) or desk._bind(self._policy)
            bound.board.excluded_C[closed] = True
        action = desk.ask(self._policy)
        assert desk.is_open(action)
        drawn = desk.draw(action)
        inputs = Inputs(
            seen.fleet,
            np.ones(len(seen.fleet.devices)),
            seen.fleet.arrays.availability_C,
            seen.fleet.arrays.home_C,
            self._own_LC.copy(),
            self._others_LC.copy(),
            desk.rule,
            desk.asked,
        )
        predicted_s = desk.bound.result_R[PREDICTED_S]
        return Decided(
            drawn.action,
            predicted_s,
            drawn.probability,
            drawn.explored,
            Explainer().explain(inputs),
        )


def decide(policy: Policy, seen: Observation, seed: int = 1) -> Decided:
    """Returns one choice of a policy."""
    return Chair(policy, seed).decide(seen)


def tier_chosen(name: str, seen: Observation, params: dict[str, float] | None = None) -> int:
    """Returns the tier a policy chooses."""
    policy = make_policy(name, fleets.catalog(), params)
    return int(seen.fleet.arrays.tier_C[decide(policy, seen).action])
