"""The engine: timelines that can be worked out by hand, and laws that always hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.fleet import build_fleet
from router.safety import SafetyLimits
from router.types import RewardKind, SloKind, Task
from tests.unit.router import fleets
from tests.unit.trainer.simulation.settings import config, requests, spec, traffic
from trainer.simulation import loop, state
from trainer.simulation.simulate import (
    FleetEvent,
    PolicySpec,
    SimulationError,
    make_world,
    result_of,
    simulate,
)

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

SMALL, MEDIUM, LARGE = (fleets.profile().tiers[tier] for tier in fleets.TIERS)


def test_one_request_takes_the_unloaded_latency() -> None:
    """Alone on its device a request takes prompt + tokens x (step + one sequence)."""
    result = simulate(config(), requests((1.0, 100, 8)), spec("static-large"))
    assert result.latency_N[0] == pytest.approx(LARGE.unloaded_latency_s(100, 8))
    assert result.on_time_N[0]
    assert result.reward_N[0] == 1.0


def test_batched_requests_share_iterations() -> None:
    """A second request that comes during the first iteration joins at the next one."""
    result = simulate(config(1), requests((1.0, 100, 3), (1.001, 50, 2)), spec("static-large"))
    step, each, prompt = LARGE.step_s, LARGE.per_sequence_s, LARGE.per_prompt_token_s
    first = step + each + 100 * prompt
    second = step + 2 * each + 50 * prompt
    third = step + 2 * each
    assert result.latency_N[0] == pytest.approx(first + second + third)
    assert result.latency_N[1] == pytest.approx(first + second + third - 0.001)


def test_tiers_of_a_device_take_turns() -> None:
    """Two tiers on one device alternate iteration by iteration."""
    world = make_world(config(1), requests((1.0, 10, 2), (1.0, 20, 2)), 0)
    for row in (2, 0):  # first large, then small
        loop.apply(world, loop.advance(world), row)
    assert loop.advance(world) == -1
    result = result_of(world, requests((1.0, 10, 2), (1.0, 20, 2)))
    large = LARGE.step_s + LARGE.per_sequence_s
    small = SMALL.step_s + SMALL.per_sequence_s
    large_first = large + 10 * LARGE.per_prompt_token_s
    small_first = small + 20 * SMALL.per_prompt_token_s
    assert result.latency_N[0] == pytest.approx(large_first + small_first + large)
    assert result.latency_N[1] == pytest.approx(large_first + small_first + large + small)


def test_batch_limit_makes_the_rest_wait() -> None:
    """With 64 running, the 65th starts only when one has finished."""
    rows = [(1.0, 1.0, 4)] * 66
    result = simulate(config(1), requests(*rows), spec("static-small"))
    ends = np.sort(result.latency_N)
    # One alone in the first iteration, 63 join at the second, the last two after the first's end.
    assert ends[0] < ends[1]
    assert ends[-1] > ends[60]
    assert result.status_N.tolist() == [state.ANSWERED] * 66


def test_late_request_is_cancelled_at_its_deadline() -> None:
    """A request that cannot finish ends at its deadline, unrewarded, and frees its place."""
    offered = requests((1.0, 100, 8), slack_s=0.05)
    result = simulate(config(), offered, spec("static-large"))
    assert result.status_N[0] == state.CANCELLED
    assert result.latency_N[0] == pytest.approx(0.05)
    assert result.reward_N[0] == 0.0


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    name=st.sampled_from(["random", "round-robin", "greedy", "price", "static-large"]),
    rate=st.sampled_from([50.0, 400.0, 2500.0]),
    routers=st.sampled_from([1, 3]),
    safety=st.booleans(),
)
def test_every_request_ends_and_nothing_is_left(
    seed: int, name: str, rate: float, routers: int, safety: bool
) -> None:
    """Whatever happens, all requests have an outcome and ledger, queues and batches are empty."""
    offered = traffic(rate, 0.6, seed)
    events = (
        FleetEvent(0.2, 0, "lost"),
        FleetEvent(0.3, 1, "slow", 3.0),
        FleetEvent(0.4, 0, "back"),
    )
    setup = config(routers=routers, staleness_s=0.1, safety=safety, events=events)
    world = make_world(setup, offered, seed)
    policy = spec(name)
    loop.run(world, policy.row, policy.params_P.copy(), policy.weights)
    result = result_of(world, offered)
    assert (result.status_N >= state.ANSWERED).all()
    np.testing.assert_allclose(world.ledger_RLC, 0.0, atol=1e-9)
    assert (world.candidates["running"] == 0).all()
    assert (world.candidates["queued"] == 0).all()
    assert (world.bucket_CM == -1).all()
    assert not (result.reward_N[~result.on_time_N] > 0).any()
    assert (result.latency_N[result.on_time_N] <= offered.slack_N[result.on_time_N] + 1e-9).all()


def test_ledger_is_what_the_requests_say() -> None:
    """In the middle of a run the ledger equals the sum over dispatched requests."""
    offered = traffic(300.0, 1.0, 3)
    world = make_world(config(), offered, 0)
    rng = np.random.default_rng(0)
    for decision in range(150):
        i = loop.advance(world)
        if decision % 10 == 0:
            _check_ledger(world)
        loop.apply(world, i, int(rng.integers(6)))


def _check_ledger(world: state.World) -> None:
    r = world.requests
    for c in range(6):
        running = (r["candidate"] == c) & (r["status"] == state.RUNNING)
        waiting = (r["candidate"] == c) & (r["status"] == state.WAITING)
        done = world.candidates["iteration"][c] - r["first_iteration"][running]
        left = np.maximum(1, r["predicted"][running] - done).sum() + r["predicted"][waiting].sum()
        unread = r["prompt"][waiting].sum() + r["prompt"][running][done == 0].sum()
        ledger_LC = world.ledger_RLC[0]
        assert ledger_LC[state.IN_FLIGHT, c] == running.sum() + waiting.sum()
        assert ledger_LC[state.REMAINING, c] == pytest.approx(left)
        assert ledger_LC[state.PROMPTS, c] == pytest.approx(unread)


def test_same_seed_same_result() -> None:
    """A run is a function of config, workload, policy and seed."""
    offered = traffic(500.0, 1.0)
    setup = config(epsilon=0.3, feature_stride=3)
    runs = [simulate(setup, offered, spec("price"), seed) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(runs[0].reward_N, runs[1].reward_N)
    np.testing.assert_array_equal(runs[0].action_N, runs[1].action_N)
    np.testing.assert_array_equal(runs[0].features_ECF, runs[1].features_ECF)
    assert (runs[0].action_N != runs[2].action_N).any()


def test_lost_device_sends_its_requests_elsewhere_with_the_safety_net() -> None:
    """What a lost device held is answered by the other one, or fails without the net."""
    offered = requests(*[(1.0, 100.0, 8)] * 6)
    events = (FleetEvent(1.02, 0, "lost"),)
    with_net = simulate(config(safety=True, events=events), offered, spec("static-large"))
    without = simulate(config(safety=False, events=events), offered, spec("static-large"))
    assert with_net.on_time_N.all()
    assert (without.status_N == state.FAILED).sum() == 3
    assert (with_net.first_reward_N == 0).sum() == 3


def test_rescue_moments_have_room_however_often_devices_are_lost() -> None:
    """A request has one for each of its three decisions, and all of them may lie ahead."""
    events = (
        *(FleetEvent(0.1, device, "lost") for device in (1, 2)),
        *(FleetEvent(1.01, 1, "back"), FleetEvent(1.02, 0, "lost")),
        *(FleetEvent(1.03, 2, "back"), FleetEvent(1.04, 1, "lost")),
    )
    offered = requests(*[(1.0, 100.0, 8)] * 40)
    world = make_world(config(3, safety=True, events=events), offered, 0)
    most = 0
    while (i := loop.advance(world)) >= 0:
        loop.apply(world, i, int(np.flatnonzero(world.allowed_C)[-1]))  # the largest tier
        most = max(most, int(world.clock["heap"][0]))
    assert most == 3 * len(offered) <= len(world.heap_s)
    assert (world.requests["on_time"] == 1).all()


def test_nothing_goes_to_a_lost_device_until_it_is_back() -> None:
    """All decisions between loss and return name the other device."""
    events = (FleetEvent(0.3, 0, "lost"), FleetEvent(0.6, 0, "back"))
    offered = traffic(200.0, 1.0)
    result = simulate(config(events=events, safety=True), offered, spec("static-large"))
    device_N = np.where(result.action_N >= 3, 1, 0)
    decided = result.action_N >= 0
    away = decided & (offered.arrival_N > 0.3) & (offered.arrival_N < 0.6)
    assert away.sum() > 10
    assert (device_N[away] == 1).all()
    assert (device_N[offered.arrival_N > 0.62] == 0).any()


def test_slow_device_takes_longer() -> None:
    """A slow-down stretches iterations; the routers' costs stay as they were."""
    events = (FleetEvent(0.5, 0, "slow", 2.0),)
    result = simulate(config(1, events=events), requests((1.0, 100, 8)), spec("static-large"))
    assert result.latency_N[0] == pytest.approx(2.0 * LARGE.unloaded_latency_s(100, 8))


def test_admission_refuses_the_hopeless_at_once() -> None:
    """With the net on, a request that no tier can make is refused when it comes."""
    offered = requests((1.0, 100, 8), slack_s=0.003)
    result = simulate(config(safety=True), offered, spec("static-large"))
    assert result.status_N[0] == state.REFUSED
    assert result.latency_N[0] == 0.0
    assert result.action_N[0] == -1


def test_rescue_saves_a_request_and_charges_the_first_choice() -> None:
    """A request stuck on a slow device is answered by a smaller tier; its choice earns nothing."""
    events = (FleetEvent(0.5, 0, "slow", 40.0),)
    offered = requests((1.0, 100, 8), slack_s=0.4)
    setup = config(events=events, safety=True, limits=SafetyLimits(optimism=1.0, margin=1.2))
    world = make_world(setup, offered, 0)
    loop.apply(world, loop.advance(world), 2)  # large on the slow device
    assert loop.advance(world) == -1
    result = result_of(world, offered)
    assert result.counters["rescues"] == 1
    assert result.tier_N[0] == 0
    assert result.on_time_N[0]
    assert result.reward_N[0] > 0.0
    assert result.first_reward_N[0] == 0.0


def test_soft_deadline_pays_less_for_late_answers() -> None:
    """A late answer earns its quality times the decay of its lateness."""
    task = Task("easy", 0.4, reward_kind=RewardKind.SOFT, soft_decay_s=0.2)
    offered = requests((1.0, 100, 8), slack_s=0.05)
    result = simulate(config(tasks=[task]), offered, spec("static-large"))
    late_s = LARGE.unloaded_latency_s(100, 8) - 0.05
    assert not result.on_time_N[0]
    assert result.reward_N[0] == pytest.approx(np.exp(-late_s / 0.2))


def test_first_token_deadline_is_met_by_the_first_token() -> None:
    """A long answer whose first token is in time is on time, and runs to its end."""
    task = Task("easy", 0.4, slo_kind=SloKind.FIRST_TOKEN)
    offered = requests((1.0, 100, 20), slack_s=0.03)
    result = simulate(config(tasks=[task]), offered, spec("static-large"))
    assert result.on_time_N[0]
    assert result.latency_N[0] == pytest.approx(LARGE.unloaded_latency_s(100, 20))


@pytest.mark.parametrize(
    ("output", "interval_s", "late_s"),
    [
        (20, 0.02, 0.0),  # a token takes 10.6 ms, the first one 19 ms
        (20, 0.005, LARGE.unloaded_latency_s(100, 20) - 0.03 - 19 * 0.005),
        (1, 0.005, 0.0),
    ],
)
def test_an_answer_is_as_late_as_its_latest_token(
    output: int, interval_s: float, late_s: float
) -> None:
    """It runs to its end all the same, and earns what its lateness leaves."""
    task = Task(
        "easy", 0.4, slo_kind=SloKind.PER_TOKEN, token_interval_s=interval_s,
        reward_kind=RewardKind.SOFT, soft_decay_s=0.2,
    )  # fmt: skip
    offered = requests((1.0, 100, output), slack_s=0.03)
    result = simulate(config(tasks=[task]), offered, spec("static-large"))
    assert result.on_time_N[0] == (late_s == 0.0)
    assert result.reward_N[0] == pytest.approx(np.exp(-late_s / 0.2))
    assert result.latency_N[0] == pytest.approx(LARGE.unloaded_latency_s(100, output))


def test_a_pause_between_two_tokens_counts() -> None:
    """A long prompt that is admitted in the middle of an answer holds its next token up."""
    reader = Task(
        "easy", 0.4, slo_kind=SloKind.PER_TOKEN, token_interval_s=0.02,
        reward_kind=RewardKind.SOFT, soft_decay_s=0.2,
    )  # fmt: skip
    # It comes within the 11th iteration, so it joins the 12th.
    arrival_s = 1.0 + LARGE.unloaded_latency_s(100, 10) + 0.005
    both = requests((1.0, 100, 20), (arrival_s, 4000, 1), slack_s=0.03)
    both = replace(both, task_N=np.array([0, 1]))
    setup = config(1, tasks=[reader, Task("hard", 10.0)], safety=False)
    result = simulate(setup, both, spec("static-large"))
    twelfth_s = LARGE.unloaded_latency_s(100, 11) + LARGE.step_s + 2 * LARGE.per_sequence_s
    twelfth_s += 4000 * LARGE.per_prompt_token_s
    assert not result.on_time_N[0]
    assert result.reward_N[0] == pytest.approx(np.exp(-(twelfth_s - 0.03 - 11 * 0.02) / 0.2))


def test_several_routers_see_each_other_late() -> None:
    """Others' load appears after the staleness, own load at once."""
    offered = requests(*[(1.0 + 0.002 * k, 4000.0, 30) for k in range(10)], (1.3, 1.0, 1))
    setup = config(1, routers=2, staleness_s=0.2, report_interval_s=0.01)
    world = make_world(setup, offered, 0)
    world.requests["router"] = [0] * 10 + [1]
    seen = []
    while (i := loop.advance(world)) >= 0:
        seen.append(float(world.seen.in_flight_C.sum()))
        loop.apply(world, i, 2)
    assert seen[:10] == [float(k) for k in range(10)]
    assert seen[10] == 10.0
    world = make_world(setup, requests(*[(1.0, 4000.0, 30)] * 5, (1.1, 1.0, 1)), 0)
    world.requests["router"] = [0] * 5 + [1]
    for _ in range(5):
        loop.apply(world, loop.advance(world), 2)
    loop.advance(world)
    assert world.seen.in_flight_C.sum() == 0.0
    assert world.clock[0]["state_age_s"] >= 0.2


def test_routers_are_those_that_a_workload_names() -> None:
    """Else each request comes through any; a router that is not there is refused."""
    offered = replace(traffic(100.0, 0.5), router_N=None)
    turn_N = np.arange(len(offered)) % 3
    world = make_world(config(routers=3), replace(offered, router_N=turn_N), 0)
    assert (world.requests["router"] == turn_N).all()
    drawn = make_world(config(routers=3), offered, 0).requests["router"]
    assert set(drawn) == {0, 1, 2}
    for wrong in (3, -1):
        with pytest.raises(SimulationError, match="router_N: there are 3 routers"):
            make_world(config(routers=3), replace(offered, router_N=0 * turn_N + wrong), 0)


def test_each_router_learns_lengths_from_its_own_answers() -> None:
    """As a live one does: what others were answered it does not know."""
    offered = requests(*[(1.0 + 0.1 * k, 10.0, 30) for k in range(20)], (4.0, 10.0, 30))
    offered = replace(offered, router_N=np.array([0] * 20 + [1]))
    world = make_world(config(routers=2, safety=False), offered, 0)
    prior = world.output_RK[0, 0]
    while (i := loop.advance(world)) >= 0:
        loop.apply(world, i, 0)
    first, second = world.output_RK[:, 0]
    assert first > second > prior
    assert world.requests["predicted"][20] == round(prior)


def test_exploration_states_its_probability() -> None:
    """Actions come as often as the recorded probabilities say."""
    offered = traffic(400.0, 25.0, 1)
    setup = config(epsilon=0.5, mix_T=(0.2, 0.3, 0.5))
    result = simulate(setup, offered, spec("static-medium"))
    assert 0.45 < result.explored_N.mean() < 0.55
    # By importance weighting, every tier's share must come out of the mix's own: sum of 1/p over
    # the tier's actions, by number of its candidates.
    tier_N = result.action_N % 3
    for tier in range(3):
        weight = (1.0 / result.probability_N[tier_N == tier]).sum() / len(offered)
        assert weight == pytest.approx(2.0, rel=0.15)


def test_recorded_decisions_match_their_requests() -> None:
    """Records are in time order, one per stride, and point to their request and back."""
    offered = traffic(300.0, 1.0)
    result = simulate(config(feature_stride=4), offered, spec("greedy"))
    assert len(result.record_N) == -(-len(offered) // 4)
    assert (np.diff(result.record_N) > 0).all()
    np.testing.assert_array_equal(
        result.record_of_N[result.record_N], np.arange(len(result.record_N))
    )
    assert np.isfinite(result.features_ECF).all()
    assert result.allowed_EC.all()


def test_time_scale_changes_nothing_but_time() -> None:
    """Stretching profile, arrivals, deadlines and estimators' input gives the same tiers."""
    offered = traffic(200.0, 1.0, 2)
    slow_config = config()
    profiles = {"": fleets.profile().scaled(10.0)}
    fleet = build_fleet(slow_config.catalog, slow_config.fleet.endpoints, profiles)
    slow = simulate(
        replace(slow_config, fleet=fleet, profiles=profiles), offered.scaled(10.0), spec("greedy")
    )
    fast = simulate(slow_config, offered, spec("greedy"))
    assert (slow.tier_N == fast.tier_N).mean() > 0.99
    assert slow.performance() == pytest.approx(fast.performance(), abs=0.005)


def test_bad_set_up_is_refused() -> None:
    """What does not fit together is named."""
    offered = traffic(50.0, 0.5)
    with pytest.raises(SimulationError, match="device 7"):
        simulate(config(events=(FleetEvent(0.1, 7, "lost"),)), offered, spec("price"))
    with pytest.raises(SimulationError, match="known: lost, back, slow"):
        simulate(config(events=(FleetEvent(0.1, 0, "gone"),)), offered, spec("price"))
    with pytest.raises(SimulationError, match="routers"):
        simulate(config(routers=0), offered, spec("price"))
    with pytest.raises(SimulationError, match="there are 1"):
        simulate(config(tasks=[Task("easy", 0.4)]), offered, spec("price"))


def test_policy_without_kernel_is_refused() -> None:
    """Only policies the compiled path knows can be simulated."""

    class Other:
        name = "other"
        version = "1"

    with pytest.raises(SimulationError, match="other"):
        PolicySpec.of(Other())
