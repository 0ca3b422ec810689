"""The performance bound: nothing that can be done in the simulator exceeds it, and it bites."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog

from router.catalog import Catalog
from router.fleet import EndpointSpec, build_fleet
from router.profile import LatencyProfile, TierProfile
from router.types import RewardKind, SloKind, Task
from tests.unit.router import fleets
from tests.unit.trainer.simulation.settings import config, requests, spec, traffic
from trainer.bound import tightness
from trainer.bound.dual import Dual
from trainer.bound.performance import best_shares, make_dual, performance_bound, window_bounds
from trainer.bound.relaxation import Shares, make_jobs
from trainer.evaluation.setting import Setting
from trainer.simulation import engine, loop, state
from trainer.simulation.simulate import (
    FleetEvent,
    SimulationConfig,
    SimulationResult,
    make_world,
    result_of,
    simulate,
)
from trainer.simulation.workload import Lengths, Workload, gamma_renewal, make_workload

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


def assigned(setup: SimulationConfig, offered: Workload, action_N: Any) -> SimulationResult:
    """Returns what happens if requests go where they are told, -1 = nowhere."""
    world = make_world(setup, offered, 0)
    while (i := loop.advance(world)) >= 0:
        if action_N[i] < 0:
            engine.settle(world, i, state.REFUSED, float(world.clock["now_s"][0]))
        else:
            loop.apply(world, i, int(action_N[i]))
    return result_of(world, offered)


@st.composite
def setups(draw: st.DrawFn) -> SimulationConfig:
    """Draws costs, placement, kinds of deadline, events, routers and safety net."""
    scale = draw(st.sampled_from([0.3, 1.0, 3.0]))
    limit = draw(st.sampled_from([1, 3, 64]))
    room = draw(st.sampled_from([None, 400, 2000]))
    tiers = {
        name: TierProfile(
            cost.step_s * scale,
            cost.per_sequence_s * draw(st.sampled_from([0.0, 1.0, 20.0])),
            cost.per_prompt_token_s * draw(st.sampled_from([0.1, 1.0])),
            max_batch=limit,
            max_prompt_tokens_per_step=draw(st.sampled_from([64, 4096])),
            overhead_s=draw(st.sampled_from([0.0, 0.01])),
            max_kv_tokens=room,
        )
        for name, cost in fleets.profile().tiers.items()
    }
    profiles = {"": LatencyProfile("drawn", "assumed", tiers)}
    tasks = (
        Task("easy", 0.4, slo_kind=draw(st.sampled_from(list(SloKind)))),
        Task("hard", 0.4, reward_kind=draw(st.sampled_from(list(RewardKind))), soft_decay_s=0.1),
    )
    catalog = Catalog(fleets.TIERS, tasks, fleets.catalog().quality_KT)
    placements = st.lists(st.sampled_from(fleets.TIERS), min_size=1, max_size=3, unique=True)
    endpoints = [
        EndpointSpec(
            f"e{i}",
            f"127.0.0.1:{9000 + i}",
            f"d{i // 2}",  # two endpoints a device
            {tier: tier for tier in draw(placements)},
            speed=draw(st.sampled_from([1.0, 1.0, 0.7])),
        )
        for i in range(draw(st.integers(1, 4)))
    ]
    last = (len(endpoints) - 1) // 2
    events = draw(
        st.sampled_from(
            [
                (),
                (FleetEvent(0.2, 0, "lost"), FleetEvent(0.5, 0, "back")),
                (FleetEvent(0.1, last, "slow", 0.5), FleetEvent(0.4, last, "slow", 3.0)),
            ]
        )
    )
    return SimulationConfig(
        build_fleet(catalog, endpoints, profiles),
        catalog,
        profiles,
        safety=draw(st.booleans()),
        routers=draw(st.sampled_from([1, 2])),
        staleness_s=0.05,
        events=events,
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Draws bursty or even requests of two tasks with deadlines of their own."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    rate = draw(st.sampled_from([20.0, 100.0, 400.0, 2000.0]))
    arrival_N = gamma_renewal(rate, draw(st.sampled_from([0.3, 1.0, 5.0])), 0.8, rng)
    return make_workload(
        arrival_N,
        0.8,
        rng=rng,
        deadline_s=draw(st.sampled_from([(0.4, 0.4), (0.1, 0.8), (1.0, 0.03)])),
        task_share=(0.6, 0.4),
        lengths=Lengths(prompt_sigma=draw(st.sampled_from([0.0, 1.0])), output_spread=0.8),
    )


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


@settings(max_examples=6, deadline=None)
@given(setup=setups(), offered=workloads(), seed=st.integers(0, 1000))
def test_charges_fit_the_device_in_every_interval(
    setup: SimulationConfig, offered: Workload, seed: int
) -> None:
    """What the relaxation charges for answers on time never exceeds the time a device has."""
    assume(len(offered) > 0)
    hard = [replace(task, reward_kind=RewardKind.HARD) for task in setup.catalog.tasks]
    setup = replace(
        setup,
        catalog=Catalog(setup.catalog.tiers, tuple(hard), setup.catalog.quality_KT),
        events=(),
        safety=False,
    )
    rng = np.random.default_rng(seed)
    result = assigned(setup, offered, rng.integers(0, setup.fleet.candidate_count, len(offered)))
    jobs = make_jobs(setup, offered, np.ones(len(offered), np.bool_))
    level_LO = jobs.level_LO() * rng.uniform(0.5, 1.5)
    weight_LO = rng.dirichlet(np.ones(len(level_LO) + 2), len(jobs.group_O)).T
    cost_JO = jobs.cost_JO(Shares(level_LO, weight_LO))
    device_N = setup.fleet.arrays.device_C[result.action_N]
    option_N = _options(setup, jobs, result)
    for d in range(len(setup.fleet.devices)):
        mine = result.on_time_N & (device_N == d)
        for start_s, end_s in itertools.product(np.arange(0.0, 0.8, 0.1), np.arange(0.1, 2.0, 0.1)):
            inside = mine & (jobs.release_J >= start_s) & (jobs.end_J <= end_s)
            charged_s = cost_JO[inside, option_N[inside]].sum()
            assert charged_s <= max(0.0, end_s - start_s) + 1e-6


def _options(setup: SimulationConfig, jobs: Any, result: SimulationResult) -> NDArray[np.int64]:
    """Returns the option each request took: that of the group of its device with its costs."""
    option_C = np.zeros(setup.fleet.candidate_count, np.int64)
    rows = list(zip(jobs.group_O, jobs.step_O, jobs.batch_O, strict=True))
    for c in range(setup.fleet.candidate_count):
        device = int(setup.fleet.arrays.device_C[c])
        tier, endpoint = setup.fleet.candidate(c)
        step_s = setup.profiles[""].tiers[tier].scaled(1.0 / endpoint.speed).step_s
        group = next(g for g, devices in enumerate(jobs.devices_G) if device in devices)
        option_C[c] = next(o for o, row in enumerate(rows) if row[0] == group and row[1] == step_s)
    return option_C[result.action_N]


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


def test_plan_made_with_the_requests_in_hand_is_between_a_single_tier_and_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The witness of tightness beats every static policy and stays below the bound."""
    monkeypatch.setattr(tightness, "TRIALS", 12)
    catalog = fleets.catalog()
    setup = config(2, safety=True)
    setting = Setting("test", catalog, setup.fleet, setup.profiles, 0.4)
    offered = traffic(300.0, 2.0)
    planned = tightness.planned_performance(setting, offered, 0.0)
    statics = [simulate(setup, offered, spec(f"static-{t}")).performance() for t in fleets.TIERS]
    assert max(statics) < planned <= performance_bound(setup, offered) + ROOM


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


def test_any_prices_give_a_bound_and_the_search_finds_about_the_best() -> None:
    """Random prices are dearer; the linear program over the same cells finds no more than 0.2 %."""
    rng = np.random.default_rng(0)
    offered = make_workload(
        gamma_renewal(250.0, 6.0, 3.0, rng), 3.0, rng=rng, task_share=(1.0, 1.0)
    )
    jobs = make_jobs(config(1), offered, np.ones(len(offered), np.bool_))
    shares = best_shares(config(1), jobs)
    assert shares is not None
    dual = make_dual(config(1), jobs, shares)
    flat_GM = dual.flat()
    found = dual.value(dual.improve(flat_GM, 48, 3))
    best = _linear_program(dual)
    assert best <= found + 1e-6
    assert found <= best * 1.002
    assert found < dual.value(flat_GM) * 0.999
    for _ in range(5):
        assert dual.value(flat_GM * rng.uniform(0.2, 3.0, flat_GM.shape)) >= best


def _linear_program(dual: Dual) -> float:
    """Returns the least value of a one-group dual over prices, window prices and surpluses."""
    cells, windows, count = dual.capacity_GM.shape[1], len(dual.first_W), len(dual.start_N1) - 1
    rows: list[NDArray[np.float64]] = []
    limits: list[float] = []
    for w in range(windows):
        for m in range(dual.first_W[w], dual.last_W[w] + 1):
            row = np.zeros(cells + windows + count)
            row[cells + w], row[m] = 1.0, -1.0
            rows.append(row)
            limits.append(0.0)
    for i in range(count):
        for o in np.flatnonzero(dual.value_JO[i] > 0.0):
            row = np.zeros(cells + windows + count)
            row[cells + dual.window_J[i]] = -dual.cost_JO[i, o]
            row[cells + windows + i] = -1.0
            rows.append(row)
            limits.append(-dual.value_JO[i, o])
    weight = np.concatenate([dual.capacity_GM[0], np.zeros(windows), np.ones(count)])
    solution = linprog(weight, A_ub=np.array(rows), b_ub=limits, bounds=(0.0, None))
    return float(solution.fun)
