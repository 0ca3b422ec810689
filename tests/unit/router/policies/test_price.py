"""Price: quality weighed against the price of device time."""

from __future__ import annotations

import numpy as np

from router.policies.table import make_policy
from tests.unit.router import fleets
from tests.unit.router.policies.observations import (
    LARGE,
    MEDIUM,
    decide,
    observation,
    tier_chosen,
)


def test_price_of_a_device_rises_with_the_rate() -> None:
    """An idle fleet serves large to a trickle, and saves itself for heavy traffic."""
    tiers = [tier_chosen("price", observation(rate_rps=rate)) for rate in (1.0, 2000.0)]
    assert tiers == [LARGE, MEDIUM]


def test_soft_deadline_keeps_quality_where_a_hard_one_gives_it_up() -> None:
    """A late answer that still earns is worth a larger tier."""
    soft, hard = (observation(task=1, slack_s=0.06, soft_decay_s=s) for s in (5.0, 0.0))
    assert tier_chosen("price", soft) > tier_chosen("price", hard)


def test_price_is_the_same_on_a_stretched_clock() -> None:
    """Stretching every time by one factor changes no decision of the price policy."""
    rng = np.random.default_rng(11)
    policy = make_policy("price", fleets.catalog())
    for _ in range(50):
        load = fleets.random_load(rng, 6, 20.0)
        rate = float(rng.uniform(10, 3000))
        actions = []
        for scale in (1.0, 7.0):
            seen = observation(
                load,
                fleet=fleets.fleet(2, speed=1.0 / scale),
                rate_rps=rate / scale,
                slack_s=0.4 * scale,
            )
            actions.append(decide(policy, seen).action)
        assert actions[0] == actions[1]
