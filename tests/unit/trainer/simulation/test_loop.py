"""What a router of the simulator learns on the way: slow devices, and caution under overload."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from router import slowdown
from router.profile import LatencyProfile
from router.safety import SafetyLimits
from router.slowdown import Slowdown
from router.types import SloKind, Task
from tests.unit.router import fleets
from tests.unit.trainer.simulation.settings import config, spec, traffic
from trainer.simulation import engine, loop, state
from trainer.simulation.simulate import FleetEvent, SimulationConfig, make_world, simulate
from trainer.simulation.workload import Workload, make_workload, piecewise

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
    loop.run(world, policy.row, policy.params_P.copy(), policy.weights)
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
    loop.run(world, policy.row, policy.params_P.copy(), policy.weights)
    assert (world.requests["status"] == state.ANSWERED).any()
    assert world.routers["compared"][0] == 0.0


@pytest.mark.parametrize("kind", [SloKind.FIRST_TOKEN, SloKind.PER_TOKEN])
def test_deadlines_of_tokens_teach_nothing(kind: SloKind) -> None:
    """Their predictions are of a token, not of the answer's end."""
    tasks = [Task(name, 0.4, slo_kind=kind) for name in ("easy", "hard")]
    setup = config(tasks=tasks)
    world, policy = make_world(setup, traffic(200.0, 1.0), 0), spec("static-medium")
    assert np.all((world.requests["first_token"] == 1) | (world.requests["interval_s"] > 0.0))
    loop.run(world, policy.row, policy.params_P.copy(), policy.weights)
    assert world.routers["compared"][0] == 0.0


FIXED = SafetyLimits(pessimism=SafetyLimits().optimism)
"""Admission as it is without learning."""


def small_capacity_rps() -> float:
    """Returns what the two test devices answer per second in full batches of the small tier."""
    offered = traffic(20_000.0, 0.5, deadline_s=1_000.0)
    result = simulate(config(), offered, spec("static-small"))
    return float(len(offered) / (offered.arrival_N + result.latency_N).max())


def run(setup: SimulationConfig, offered: Workload, name: str) -> state.World:
    """Returns the world after a run."""
    world, policy = make_world(setup, offered, 0), spec(name)
    loop.run(world, policy.row, policy.params_P.copy(), policy.weights)
    return world


@pytest.mark.parametrize("name", ["price", "static-small"])
@pytest.mark.parametrize("load", [1.3, 2.0])
def test_overload_keeps_goodput(name: str, load: float) -> None:
    """Beyond capacity most of the capacity goes to answers in time; without learning, hardly any.

    Goodput is counted against the share that the smallest tier alone could answer.
    """
    offered = traffic(load * small_capacity_rps(), 4.0)
    share = 1.0 / load
    learned = simulate(config(safety=True), offered, spec(name))
    fixed = simulate(config(safety=True, limits=FIXED), offered, spec(name))
    assert learned.availability(1.0) >= 0.7 * share
    assert learned.performance(1.0) >= 0.7 * share * 0.6  # quality of small, mean of both tasks
    assert fixed.availability(1.0) < 0.5 * learned.availability(1.0)


@pytest.mark.parametrize("name", ["price", "static-small", "debt-queue"])
def test_calm_traffic_is_unchanged_to_the_bit(name: str) -> None:
    """Where every deadline is met, learning decides exactly what the constant decides."""
    offered = traffic(300.0, 2.0)
    learned = simulate(config(safety=True), offered, spec(name))
    fixed = simulate(config(safety=True, limits=FIXED), offered, spec(name))
    assert learned.on_time_N.all()
    np.testing.assert_array_equal(learned.action_N, fixed.action_N)
    np.testing.assert_array_equal(learned.latency_N, fixed.latency_N)


def test_soon_after_a_burst_traffic_is_answered_again() -> None:
    """A second after twofold overload 99 % are answered in time, and the caution comes to rest."""
    rng = np.random.default_rng(1)
    arrival_N = piecewise([(2.0, 2.0 * small_capacity_rps()), (10.0, 100.0)], rng)
    offered = make_workload(arrival_N, 12.0, rng=rng, deadline_s=0.4, task_share=(0.5, 0.5))
    world = run(config(safety=True), offered, "price")
    assert (world.requests["status"] == state.REFUSED).any()
    late_N = offered.arrival_N > 3.0
    assert world.requests["on_time"][late_N].mean() >= 0.99
    assert world.routers["raised"][0] == 0.0


def test_a_lost_device_does_not_raise_the_caution_of_a_calm_mesh() -> None:
    """Requests that went down with a device say nothing about predictions."""
    events = (FleetEvent(0.5, 0, "lost"),)
    offered = traffic(300.0, 2.0)
    world = run(config(safety=True, events=events), offered, "static-small")
    assert (world.requests["attempt"] > 1).any()
    assert world.routers["raised"][0] == 0.0


def teach(changes: dict[str, Any], soft: bool = False, safety: bool = True) -> float:
    """Returns the misses counted after settling one cancelled request with these fields."""
    world = make_world(config(safety=safety), traffic(50.0, 1.0), 0)
    request = world.requests[0]
    request["status"], request["attempt"] = state.CANCELLED, 1
    request["decay_s"] = 0.2 if soft else 0.0
    for name, value in changes.items():
        request[name] = value
    engine.teach_admission(world, 0, 1.0)
    return float(world.routers["missed"][0])


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({}, 1.0),
        ({"rescued": 1, "attempt": 2}, 1.0),
        ({"attempt": 2}, 0.0),
        ({"status": state.FAILED}, 0.0),
        ({"status": state.REFUSED}, 0.0),
    ],
)
def test_what_counts_as_a_miss(changes: dict[str, Any], counted: float) -> None:
    """Cut off or late, rescued or not; not failed, refused, or sent again after a loss."""
    assert teach(changes) == counted


def test_soft_deadlines_and_a_net_that_is_off_teach_nothing() -> None:
    """Neither is ever refused, so there is nothing to learn."""
    assert teach({}, soft=True) == 0.0
    assert teach({}, safety=False) == 0.0


def test_traffic_that_comes_back_to_idle_devices_is_served_as_before() -> None:
    """Nothing is lost to large tiers that the first of it got, and to what that did to the rest."""
    rng, rate_rps = np.random.default_rng(5), 0.5 * small_capacity_rps()
    arrival_N = piecewise([(1.5, rate_rps), (2.0, 0.0), (1.5, rate_rps)], rng)
    offered = make_workload(arrival_N, 5.0, rng=rng, deadline_s=0.4, task_share=(0.5, 0.5))
    result = simulate(config(safety=True, hold_targets=True), offered, spec("price"))
    before_N, after_N = (arrival_N > 0.7) & (arrival_N < 1.5), arrival_N >= 3.5
    assert result.on_time_N[after_N].mean() > 0.99
    assert result.reward_N[after_N].mean() > 0.97 * result.reward_N[before_N].mean()
