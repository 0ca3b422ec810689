"""Random: every candidate evenly."""

from __future__ import annotations

import numpy as np

from router.policies.table import make_policy
from tests.unit.router import fleets
from tests.unit.router.policies.observations import (
    observation,
)


def test_random_reaches_every_candidate_evenly() -> None:
    """Over many draws each candidate gets about its share."""
    seen = observation()
    policy = make_policy("random", fleets.catalog())
    rng = np.random.default_rng(5)
    counts = np.bincount([policy.decide(seen, rng).action for _ in range(1200)], minlength=6)
    assert counts.min() > 140
    assert counts.max() < 260
