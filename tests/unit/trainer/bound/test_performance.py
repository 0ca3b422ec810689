"""No policy, assignment or clairvoyant is above the bound; small cases by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.fleet import EndpointSpec, build_fleet
from router.profile import LatencyProfile, TierProfile
from router.types import RewardKind, SloKind, Task
from tests.unit.router import fleets
from tests.unit.trainer.bound.worlds import assigned, setups, workloads
from tests.unit.trainer.simulation.settings import config, requests, spec, traffic
from trainer.bound.performance import performance_bound, window_bounds
from trainer.simulation.simulate import (
    SOFT_GRACE,
    FleetEvent,
    SimulationConfig,
    simulate,
)
from trainer.simulation.workload import Workload

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


POLICIES = (
    "static-small",
    "static-medium",
    "static-large",
    "random",
    "round-robin",
    "greedy",
    "threshold",
    "slackfit",
    "debt-queue",
    "fluid",
    "price",
)


ROOM = 1e-9


"""For sums of rewards in another order."""


@settings(max_examples=20, deadline=None)
@given(setup=setups(), offered=workloads(), name=st.sampled_from(POLICIES), warm=st.booleans())
def test_no_policy_exceeds_the_bound(
    setup: SimulationConfig, offered: Workload, name: str, warm: bool
) -> None:
    """Whatever the fleet, the requests and the policy, the rewards stay below it."""
    warm_up_s = 0.2 if warm else 0.0
    bound = performance_bound(setup, offered, warm_up_s=warm_up_s)
    assert 0.0 <= bound <= 1.0
    assert simulate(setup, offered, spec(name), 1).performance(warm_up_s) <= bound + ROOM


@settings(max_examples=6, deadline=None)
@given(setup=setups(), offered=workloads(), seed=st.integers(0, 1000))
def test_no_assignment_exceeds_the_bound_of_any_window(
    setup: SimulationConfig, offered: Workload, seed: int
) -> None:
    """Requests sent anywhere or refused by chance earn less than the bound, window by window."""
    count = setup.fleet.candidate_count
    action_N = np.random.default_rng(seed).integers(-1, count, len(offered))
    result = assigned(setup, offered, action_N)
    bound_W = window_bounds(setup, offered, 0.25)
    earned_W = result.windows(0.25)
    np.testing.assert_array_equal(np.isnan(bound_W), np.isnan(earned_W))
    assert (earned_W <= bound_W + ROOM)[~np.isnan(earned_W)].all()


@settings(max_examples=8, deadline=None)
@given(
    gaps=st.lists(st.sampled_from([0.0, 0.01, 0.05]), min_size=4, max_size=4),
    prompts=st.lists(st.sampled_from([10.0, 400.0, 1500.0]), min_size=4, max_size=4),
    outputs=st.lists(st.integers(1, 6), min_size=4, max_size=4),
    slack_s=st.sampled_from([0.06, 0.15, 0.3]),
)
def test_no_clairvoyant_exceeds_the_bound(
    gaps: list[float], prompts: list[float], outputs: list[int], slack_s: float
) -> None:
    """The best of all assignments of a few requests, found by trying each, stays below it."""
    rows = zip(np.cumsum(gaps).tolist(), prompts, outputs, strict=True)
    offered = requests(*rows, slack_s=slack_s)
    setup = config(1)
    best = max(
        assigned(setup, offered, action_N).performance()
        for action_N in itertools.product(range(-1, 3), repeat=len(offered))
    )
    bound = performance_bound(setup, offered)
    assert best <= bound + ROOM


def alone(tier: TierProfile) -> SimulationConfig:
    """Returns one device with one tier, of quality 0.8."""
    profiles = {"": LatencyProfile("one", "assumed", {"small": tier})}
    catalog = fleets.catalog()
    endpoint = EndpointSpec("e", "127.0.0.1:9000", "d", {"small": "small"})
    fleet = build_fleet(catalog, [endpoint], profiles)
    return SimulationConfig(fleet, catalog, profiles, safety=False)


def test_bound_of_one_burst_is_worked_out_by_hand() -> None:
    """Ten prompts of 0.1 s each at once and 0.25 s to answer: two and a half at most."""
    offered = requests(*[(1.0, 100.0, 1)] * 10, slack_s=0.25)
    bound = performance_bound(alone(TierProfile(1e-6, 0.0, 0.001)), offered)
    assert bound == pytest.approx(0.25 * 0.8, rel=1e-3)


@pytest.mark.parametrize(
    "tier",
    [
        pytest.param(TierProfile(0.01, 0.00001, 0.0001), id="deadline"),
        pytest.param(TierProfile(0.01, 0.00001, 0.000001, max_batch=20), id="batch"),
        pytest.param(TierProfile(0.01, 0.00001, 0.000001, max_kv_tokens=2400), id="room"),
    ],
)
def test_burst_that_just_fits_is_within_the_bound_and_a_tenth_less_time_is_not(
    tier: TierProfile,
) -> None:
    """Twenty requests share their steps as the deadline, the batch or the room just allows."""
    rows = [(1.0, 100.0, 20)] * 20
    needed_s = float(simulate(alone(tier), requests(*rows), spec("static-small")).latency_N.max())
    fits = requests(*rows, slack_s=needed_s * 1.000001)
    assert simulate(alone(tier), fits, spec("static-small")).performance() == pytest.approx(0.8)
    assert performance_bound(alone(tier), fits) >= 0.8 - ROOM
    assert performance_bound(alone(tier), requests(*rows, slack_s=needed_s * 0.9)) < 0.8 - 0.005


def test_what_is_cached_of_a_conversation_is_within_the_bound() -> None:
    """A prompt that is too long for its deadline is not where most of it has been computed."""
    tier = TierProfile(0.001, 0.0, 0.001, prefix_cache_tokens=1000)
    offered = requests((0.0, 100.0, 1), (1.0, 200.0, 1), slack_s=0.15)
    talk = replace(offered, conversation_N=np.zeros(2, np.int64))
    assert performance_bound(alone(tier), offered) == pytest.approx(0.4)
    assert simulate(alone(tier), talk, spec("static-small")).performance() == pytest.approx(0.8)
    assert performance_bound(alone(tier), talk) == pytest.approx(0.8)


@pytest.mark.parametrize("kind", [SloKind.FIRST_TOKEN, SloKind.PER_TOKEN])
def test_a_stream_that_comes_after_its_grace_is_within_the_bound(kind: SloKind) -> None:
    """Nobody cancels it, so it earns the little that is left: here seven decays after its time."""
    task = Task("easy", 0.4, slo_kind=kind, reward_kind=RewardKind.SOFT, soft_decay_s=0.002)
    setup = config(1, tasks=[task, Task("hard", 0.4)])
    offered = requests((0.0, 3000.0, 1), slack_s=0.001)
    earned = simulate(setup, offered, spec("static-small")).performance()
    assert 0.0 < earned < math.exp(-SOFT_GRACE)
    assert earned <= performance_bound(setup, offered) <= math.exp(-SOFT_GRACE) + ROOM


def test_bound_is_one_where_the_largest_tier_carries_all() -> None:
    """At a low rate nothing is lost."""
    assert performance_bound(config(2), traffic(10.0, 4.0)) == pytest.approx(1.0)


def test_bound_bites_under_overload() -> None:
    """Beyond what the devices can do it is below 1, and within a tenth of what price earns."""
    offered = traffic(1200.0, 4.0)
    bound = performance_bound(config(2), offered)
    earned = simulate(config(2), offered, spec("price")).performance()
    assert earned <= bound < 0.85
    assert earned > 0.9 * bound


def test_bound_grows_with_deadline_and_devices() -> None:
    """More time or more devices never lower it; both raise it under overload."""
    by_deadline = [
        performance_bound(config(2), traffic(1500.0, 2.0, 0, s)) for s in (0.1, 0.2, 1.0)
    ]
    by_devices = [performance_bound(config(n), traffic(1500.0, 2.0)) for n in (1, 2, 4, 8)]
    assert (np.diff(by_deadline) > 0.0).all()
    assert (np.diff(by_devices) > 0.0).all()


def test_lost_and_slow_devices_lower_the_bound() -> None:
    """A device that is away or slow for a while has less time to give, one sped up more."""
    offered = traffic(1500.0, 2.0)
    base = performance_bound(config(2), offered)
    lost = (FleetEvent(0.5, 0, "lost"), FleetEvent(1.5, 0, "back"))
    slow = (FleetEvent(0.0, 0, "slow", 2.0),)
    fast = (FleetEvent(0.0, 0, "slow", 0.5),)
    assert performance_bound(config(2, events=lost), offered) < base - 0.01
    assert performance_bound(config(2, events=slow), offered) < base - 0.01
    assert performance_bound(config(2, events=fast), offered) > base + 0.01


def test_bound_of_nothing_is_that_of_performance() -> None:
    """Without a request after the warm-up both are 1."""
    offered = requests((0.5, 10.0, 2))
    assert performance_bound(config(1), offered, warm_up_s=0.9) == 1.0
