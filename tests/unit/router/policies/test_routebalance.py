"""RouteBalance: quality less weighted latency, queue and cost."""

from __future__ import annotations

import pytest

from router.ledger import zero_load
from router.policies.table import make_policy
from tests.unit.router import fleets
from tests.unit.router.policies.observations import (
    LARGE,
    decide,
    observation,
    tier_chosen,
)

NO_WEIGHTS = {"latency": 0.0, "queue": 0.0, "cost": 0.0}


@pytest.mark.parametrize("weight", ["latency", "cost"])
def test_routebalance_gives_quality_up_for_latency_and_cost(weight: str) -> None:
    """With no weights it takes the largest tier; a heavy one brings it down."""
    assert tier_chosen("routebalance", observation(), NO_WEIGHTS) == LARGE
    assert tier_chosen("routebalance", observation(), NO_WEIGHTS | {weight: 2.0}) < LARGE


def test_routebalance_moves_to_the_device_with_the_shorter_queue() -> None:
    """The queue's weight counts the device's work, of whichever tier."""
    load = zero_load(6)
    load.in_flight_C[[0, 5]] = [30.0, 1.0]
    load.remaining_output_tokens_C[[0, 5]] = [240.0, 1.0]
    policy = make_policy("routebalance", fleets.catalog(), NO_WEIGHTS | {"queue": 2.0})
    assert decide(policy, observation(load)).action == 5
