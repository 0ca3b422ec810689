"""The ruler: worth and charge of a choice, the same for every policy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.explanation import Explainer, Inputs
from router.policies.table import make_policy
from router.ruler import HIGHEST_CHARGE, Ruler
from tests.unit.router import fleets
from tests.unit.router.test_explanation import World, policy_of


def inputs_of(seed: int, policy: str) -> Inputs:
    """Returns what a decision of a policy rested on."""
    return World(seed).decide(policy_of(policy))


def allowed(inputs: Inputs) -> list[int]:
    """Returns the rows the request might go to."""
    return [int(row) for row in np.flatnonzero(Explainer().explain(inputs).allowed_C)]


@pytest.mark.parametrize("policy", ["static-medium", "dqn", "price"])
def test_value_is_the_score_of_price_whoever_decided(policy: str) -> None:
    """Quality x P(on time) less price x device time, from what the decision saw."""
    measured = 0
    for seed in range(8):
        inputs = inputs_of(seed, policy)
        by_price = World(seed).decide(make_policy("price", fleets.catalog()))
        score_C = Explainer().explain(by_price).score_C
        for row in allowed(inputs):
            found = Ruler().measure(inputs, row)
            assert 0.0 <= found.worth <= 1.0
            assert 0.0 <= found.charge <= HIGHEST_CHARGE
            best = max(score_C[each] for each in allowed(inputs))
            assert found.best == pytest.approx(max(-1.0, min(1.0, best)), abs=1e-9)
            if found.charge < HIGHEST_CHARGE:
                assert found.value == pytest.approx(score_C[row], abs=1e-9)
                measured += 1
    assert measured > 10


def test_pressure_raises_the_charge_and_leaves_the_worth() -> None:
    """By its exponential: device time is what targets make scarce, of hard deadlines alone."""
    inputs = inputs_of(1, "static-medium")
    query = inputs.asked.query._replace(soft_decay_s=0.0)
    inputs = inputs._replace(asked=inputs.asked._replace(query=query))
    pressed = inputs._replace(
        asked=inputs.asked._replace(query=query._replace(pressure=1.0, is_small=1.0))
    )
    ruler, some = Ruler(), 0
    for row in allowed(inputs):
        calm, hard = ruler.measure(inputs, row), ruler.measure(pressed, row)
        assert hard.worth == calm.worth
        expected = min(HIGHEST_CHARGE, math.e * calm.charge)
        assert hard.charge == pytest.approx(expected, abs=1e-6)
        some += calm.charge > 1e-6
    assert some > 0


def test_a_busy_device_costs_more() -> None:
    """The charge follows the load that the decision saw."""
    inputs = inputs_of(3, "static-medium")
    row = allowed(inputs)[0]
    idle = inputs._replace(own_LC=np.zeros_like(inputs.own_LC), others_LC=inputs.others_LC * 0.0)
    ruler = Ruler()
    assert ruler.measure(inputs, row).charge > ruler.measure(idle, row).charge
