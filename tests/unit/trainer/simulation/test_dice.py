"""What devices draw: iteration times that spread about the profile's means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from router.profile import LatencyProfile
from tests.unit.router import fleets
from tests.unit.trainer.simulation.settings import config, requests, spec, traffic
from trainer.simulation import state
from trainer.simulation.simulate import SimulationConfig, SimulationResult, simulate

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def spread(cv: float) -> SimulationConfig:
    """Devices whose iterations spread so much; routers believe what they believed before."""
    profile = fleets.profile()
    tiers = {name: replace(tier, iteration_cv=cv) for name, tier in profile.tiers.items()}
    setup = config(device_count=1)
    return replace(setup, profiles={"": LatencyProfile("true", "assumed", tiers)})


def alone(cv: float, tokens: int) -> SimulationResult:
    """Five hundred answers one after the other on one device, each alone there."""
    rows = [(10.0 * n, 50.0, tokens) for n in range(500)]
    return simulate(spread(cv), requests(*rows), spec("static-large"), seed=7)


def test_answers_spread_as_their_iterations_do() -> None:
    """The mean stays, and of independent iterations the standard deviations add up in squares."""
    exact, found = alone(0.0, 16).latency_N, alone(0.3, 16).latency_N
    assert np.ptp(exact) < 1e-9
    assert found.mean() == pytest.approx(exact.mean(), rel=0.02)
    costs = fleets.profile().tiers["large"]
    first_s = costs.token_s + 50.0 * costs.per_prompt_token_s
    expected_s = 0.3 * np.sqrt(first_s**2 + 15 * costs.token_s**2)
    assert found.std() == pytest.approx(expected_s, rel=0.1)


def test_the_same_seed_gives_the_same_spread_and_another_one_another() -> None:
    """A run is a function of its config and its seed."""
    work, policy = traffic(100.0, 2.0), spec("static-medium")
    first, again, other = (
        simulate(spread(0.2), work, policy, seed).latency_N for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_routers_draw_the_same_whether_iterations_spread_or_not() -> None:
    """The devices have dice of their own: at a load that nothing waits for, choices are equal."""
    work, policy = requests(*((1.0 * n, 50.0, 4) for n in range(200))), spec("random")
    exact, found = (simulate(spread(cv), work, policy, 3) for cv in (0.0, 0.3))
    assert len(set(exact.tier_N.tolist())) > 1
    assert np.array_equal(exact.action_N, found.action_N)
    assert not np.array_equal(exact.latency_N, found.latency_N)
    assert (found.status_N == state.ANSWERED).all()
