"""A picker's endpoint inside a policy's tier."""

from __future__ import annotations

import pytest

from router.ledger import zero_load
from router.picker import UnknownPickerError
from router.policies.table import make_policy
from tests.unit.router import fleets
from tests.unit.router.policies.observations import Chair, observation


def test_picker_keeps_the_policys_tier_and_moves_the_endpoint() -> None:
    """`static-large+round-robin` visits the large endpoints in turn, whatever their load."""
    load = zero_load(6)
    load.in_flight_C[2] = 9.0
    load.remaining_output_tokens_C[2] = 70.0
    policy = make_policy("static-large+round-robin", fleets.catalog())
    chair, seen = Chair(policy), observation(load)
    assert [chair.decide(seen).action for _ in range(3)] == [2, 5, 2]
    assert policy.name == "static-large+round-robin"


def test_unknown_picker_lists_the_known() -> None:
    """The error names every picker that exists."""
    with pytest.raises(UnknownPickerError, match=r"join-shortest-queue.*random"):
        make_policy("price+best", fleets.catalog())
