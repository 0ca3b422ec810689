"""Round robin: candidates in turn."""

from __future__ import annotations

import numpy as np

from router.policies.table import make_policy
from tests.unit.router import fleets
from tests.unit.router.policies.observations import Chair, observation


def test_round_robin_takes_turns_and_skips_what_is_closed() -> None:
    """The allowed candidates come in order, again and again."""
    seen = observation()
    chair = Chair(make_policy("round-robin", fleets.catalog()))
    closed = np.array([1, 4])
    assert [chair.decide(seen, closed).action for _ in range(6)] == [0, 2, 3, 5, 0, 2]
