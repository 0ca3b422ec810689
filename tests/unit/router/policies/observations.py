"""States of a small fleet, and what a policy makes of them."""

from __future__ import annotations

import numpy as np

from router.ledger import LoadArrays, zero_load
from router.policies.table import make_policy
from router.policy import Observation, observe
from router.types import Request, Signals
from tests.unit.router import fleets

SMALL, MEDIUM, LARGE = 0, 1, 2
MARGIN = {"margin": 0.8}
"""The whole slack but for a reserve; the tuned margins give quality away to survive overload."""


def observation(
    load: LoadArrays | None = None,
    *,
    device_count: int = 2,
    rate_rps: float = 1.0,
    request: Request | None = None,
) -> Observation:
    """Returns an observation of a test fleet, idle unless a load is given."""
    fleet = fleets.fleet(device_count)
    return observe(
        fleet,
        load or zero_load(fleet.candidate_count),
        request or Request(task=0, slack_s=0.4, prompt_tokens=100.0, output_tokens=8.0),
        Signals(rate_rps, rate_rps, 0.0),
        np.random.default_rng(0),
    )


def tier_chosen(name: str, seen: Observation, params: dict[str, float] | None = None) -> int:
    """Returns the tier a policy chooses."""
    policy = make_policy(name, fleets.catalog(), params)
    decision = policy.decide(seen, np.random.default_rng(1))
    return int(seen.fleet.arrays.tier_C[decision.action])
