"""Random: every candidate evenly."""

from __future__ import annotations

import numpy as np

from router.policies.table import make_policy
from tests.unit.router import fleets
from tests.unit.router.policies.observations import Chair, observation


def test_random_reaches_every_candidate_evenly() -> None:
    """Over many draws each candidate gets about its share."""
    seen = observation()
    chair = Chair(make_policy("random", fleets.catalog()))
    decisions = [chair.decide(seen) for _ in range(1200)]
    assert {decided.probability for decided in decisions} == {1.0 / 6.0}
    counts = np.bincount([decided.action for decided in decisions], minlength=6)
    assert counts.min() > 140
    assert counts.max() < 260
