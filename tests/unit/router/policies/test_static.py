"""Static: one tier, on the least loaded device."""

from __future__ import annotations

import numpy as np
import pytest

from router.ledger import zero_load
from router.policies.table import make_policy
from tests.unit.router import fleets
from tests.unit.router.policies.observations import (
    LARGE,
    MEDIUM,
    Chair,
    decide,
    observation,
)


@pytest.mark.parametrize(("tier", "index"), [("small", 0), ("medium", 1), ("large", 2)])
def test_static_keeps_its_tier_on_the_least_loaded_device(tier: str, index: int) -> None:
    """A static policy stays on its tier and avoids the device with work."""
    load = zero_load(6)
    load.in_flight_C[2] = 5.0
    load.remaining_output_tokens_C[2] = 40.0
    seen = observation(load)
    policy = make_policy(f"static-{tier}", fleets.catalog())
    action = decide(policy, seen).action
    assert seen.fleet.arrays.tier_C[action] == index
    assert seen.fleet.arrays.device_C[action] == 1


def test_static_falls_to_the_tier_below_when_its_own_is_gone() -> None:
    """Without a usable large endpoint static-large serves on medium, not on small."""
    seen = observation()
    tier_C = seen.fleet.arrays.tier_C
    chair = Chair(make_policy("static-large", fleets.catalog()))
    assert tier_C[chair.decide(seen, np.flatnonzero(tier_C == LARGE)).action] == MEDIUM
