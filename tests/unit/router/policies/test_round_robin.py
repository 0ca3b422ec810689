"""Round robin: candidates in turn."""

from __future__ import annotations

import dataclasses

import numpy as np

from router.policies.table import make_policy
from tests.unit.router import fleets
from tests.unit.router.policies.observations import (
    observation,
)


def test_round_robin_takes_turns_and_skips_what_is_closed() -> None:
    """The allowed candidates come in order, again and again."""
    seen = observation()
    allowed_C = [row not in (1, 4) for row in range(6)]
    seen = dataclasses.replace(seen, allowed_C=allowed_C)
    policy = make_policy("round-robin", fleets.catalog())
    rng = np.random.default_rng(0)
    assert [policy.decide(seen, rng).action for _ in range(6)] == [0, 2, 3, 5, 0, 2]
