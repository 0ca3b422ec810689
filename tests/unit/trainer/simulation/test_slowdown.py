"""Routers in the simulator notice devices that are slower than their profile."""

from __future__ import annotations

import numpy as np
import pytest

from router import slowdown
from router.profile import LatencyProfile
from router.slowdown import Slowdown
from router.types import SloKind, Task
from tests.unit.router import fleets
from tests.unit.trainer.simulation.settings import config, spec, traffic
from trainer.simulation import loop, state
from trainer.simulation.simulate import SimulationConfig, make_world

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

DURATION_S = 4.0


def factor(by: float, setup: SimulationConfig | None = None, **kinds: float) -> float:
    """Returns what the router has learned after a run on devices `by` times slower."""
    setup = setup or config()
    profile = fleets.profile()
    tiers = {name: tier.scaled(by) for name, tier in profile.tiers.items()}
    setup = SimulationConfig(
        setup.fleet, setup.catalog, {"": LatencyProfile("true", "assumed", tiers)}, safety=False
    )
    world, policy = make_world(setup, traffic(200.0, DURATION_S), 0), spec("static-medium", **kinds)
    loop.run(world, policy.kind, policy.params_P.copy(), policy.weights)
    learned = Slowdown(*(world.routers[name][0] for name in ("compared", "ratios", "compared_s")))
    return slowdown.factor(learned, DURATION_S, 0.4)


@pytest.mark.parametrize("by", [1.3, 1.6])
def test_slower_devices_are_noticed(by: float) -> None:
    """The factor learned is about the true one, less what is ordinary; no one told the router."""
    assert factor(by) == pytest.approx(by / slowdown.ORDINARY, rel=0.1)
    assert factor(1.0) < 1.1


def test_requests_that_were_sent_twice_teach_nothing() -> None:
    """A prediction made for one place says nothing about the time another one took."""
    world = make_world(config(), traffic(200.0, 1.0), 0)
    policy = spec("static-medium")
    world.requests["attempt"] = 1  # as if each had been sent once before
    loop.run(world, policy.kind, policy.params_P.copy(), policy.weights)
    assert (world.requests["status"] == state.ANSWERED).any()
    assert world.routers["compared"][0] == 0.0


def test_first_token_deadlines_teach_nothing() -> None:
    """Their predictions are of the first token, not of the answer's end."""
    tasks = [Task(name, 0.4, slo_kind=SloKind.FIRST_TOKEN) for name in ("easy", "hard")]
    setup = config(tasks=tasks)
    world, policy = make_world(setup, traffic(200.0, 1.0), 0), spec("static-medium")
    assert np.all(world.requests["first_token"] == 1)
    loop.run(world, policy.kind, policy.params_P.copy(), policy.weights)
    assert world.routers["compared"][0] == 0.0
