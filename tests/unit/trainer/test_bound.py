"""The performance bound: nothing that can be done in the simulator exceeds it, and it bites."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.trainer.simulation.settings import config, spec, traffic
from trainer.bound.performance import performance_bound
from trainer.simulation.simulate import simulate

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

POLICIES = ("static-small", "static-medium", "static-large", "random", "greedy", "price", "fluid")


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rate=st.sampled_from([40.0, 150.0, 400.0, 1500.0, 4000.0]),
    deadline_s=st.sampled_from([0.05, 0.2, 0.4, 1.0]),
    warm_up_s=st.sampled_from([0.0, 0.2]),
    name=st.sampled_from(POLICIES),
    safety=st.booleans(),
)
def test_no_policy_exceeds_the_bound(
    seed: int, rate: float, deadline_s: float, warm_up_s: float, name: str, safety: bool
) -> None:
    """Rewards of policies of the registry stay below it, safety net on or off."""
    offered = traffic(rate, 0.8, seed, deadline_s)
    setup = replace(config(2), safety=safety)
    bound = performance_bound(setup, offered, warm_up_s=warm_up_s)
    assert 0.0 <= bound <= 1.0 + 1e-9
    assert simulate(setup, offered, spec(name), seed).performance(warm_up_s) <= bound + 1e-9


def test_bound_bites_under_overload() -> None:
    """Far beyond what the devices can do, it is far below 1, and yet near what price earns."""
    offered = traffic(2500.0, 4.0)
    bound = performance_bound(config(2), offered)
    assert bound < 0.75
    assert np.isfinite(bound)
