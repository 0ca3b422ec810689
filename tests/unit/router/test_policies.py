"""Policies: what each one chooses in states where the right answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.ledger import LoadArrays, zero_load
from router.picker import UnknownPickerError
from router.policies import table
from router.policies.base import PolicyParameterError
from router.policy import Observation, observe
from router.types import Request, RewardKind, Signals, UnknownPolicyError
from tests.unit.router import fleets

NAMES = tuple(name for name in table.known_policies(fleets.catalog()) if name not in table.LEARNED)
SMALL, MEDIUM, LARGE = 0, 1, 2


def observation(
    load: LoadArrays | None = None,
    *,
    device_count: int = 2,
    rate_rps: float = 1.0,
    request: Request | None = None,
) -> Observation:
    """Returns an observation of a test fleet, idle unless a load is given."""
    fleet = fleets.fleet(device_count)
    return observe(
        fleet,
        load or zero_load(fleet.candidate_count),
        request or Request(task=0, slack_s=0.4, prompt_tokens=100.0, output_tokens=8.0),
        Signals(rate_rps, rate_rps, 0.0),
        np.random.default_rng(0),
    )


def tier_chosen(name: str, seen: Observation, params: dict[str, float] | None = None) -> int:
    """Returns the tier a policy chooses."""
    policy = table.make_policy(name, fleets.catalog(), params)
    decision = policy.decide(seen, np.random.default_rng(1))
    return int(seen.fleet.arrays.tier_C[decision.action])


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from((*NAMES, "price+power-of-two", "fluid+round-robin")),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 5.0, 80.0, 1e6]),
    slack_s=st.floats(-1.0, 100.0),
    floor=st.sampled_from([0.0, 0.9]),
    rate_rps=st.floats(0.0, 1e6),
)
def test_every_policy_chooses_an_allowed_candidate_and_explains(
    name: str, seed: int, scale: float, slack_s: float, floor: float, rate_rps: float
) -> None:
    """In any state each policy names an allowed row, with finite scores and predictions."""
    load = fleets.random_load(np.random.default_rng(seed), 6, scale)
    request = Request(0, slack_s, 100.0, 8.0, quality_floor=floor)
    seen = observation(load, rate_rps=rate_rps, request=request)
    decision = table.make_policy(name, fleets.catalog()).decide(seen, np.random.default_rng(2))
    assert seen.allowed_C[decision.action]
    np.testing.assert_array_equal(np.isfinite(decision.score_C), seen.allowed_C)
    assert np.isfinite(decision.predicted_latency_s_C).all()
    assert all(0.0 <= share <= 1.0 for share in decision.on_time_probability_C)
    assert 0.0 < decision.behavior_probability <= 1.0


@pytest.mark.parametrize(("tier", "index"), [("small", 0), ("medium", 1), ("large", 2)])
def test_static_keeps_its_tier_on_the_least_loaded_device(tier: str, index: int) -> None:
    """A static policy stays on its tier and avoids the device with work."""
    load = zero_load(6)
    load.in_flight_C[2] = 5.0
    load.remaining_output_tokens_C[2] = 40.0
    seen = observation(load)
    policy = table.make_policy(f"static-{tier}", fleets.catalog())
    action = policy.decide(seen, np.random.default_rng(0)).action
    assert seen.fleet.arrays.tier_C[action] == index
    assert seen.fleet.arrays.device_C[action] == 1


def test_static_falls_to_the_tier_below_when_its_own_is_gone() -> None:
    """Without a usable large endpoint static-large serves on medium, not on small."""
    seen = observation()
    allowed_C = [tier != LARGE for tier in seen.fleet.lists.tier_C]
    assert tier_chosen("static-large", dataclasses.replace(seen, allowed_C=allowed_C)) == MEDIUM


def test_random_reaches_every_candidate_evenly() -> None:
    """Over many draws each candidate gets about its share."""
    seen = observation()
    policy = table.make_policy("random", fleets.catalog())
    rng = np.random.default_rng(5)
    counts = np.bincount([policy.decide(seen, rng).action for _ in range(1200)], minlength=6)
    assert counts.min() > 140
    assert counts.max() < 260


def test_round_robin_takes_turns_and_skips_what_is_closed() -> None:
    """The allowed candidates come in order, again and again."""
    seen = observation()
    allowed_C = [row not in (1, 4) for row in range(6)]
    seen = dataclasses.replace(seen, allowed_C=allowed_C)
    policy = table.make_policy("round-robin", fleets.catalog())
    rng = np.random.default_rng(0)
    assert [policy.decide(seen, rng).action for _ in range(6)] == [0, 2, 3, 5, 0, 2]


MARGIN = {"margin": 0.8}
"""The whole slack but for a reserve; the tuned margins give quality away to survive overload."""


@pytest.mark.parametrize(
    ("name", "params"),
    [("greedy", MARGIN), ("slackfit", MARGIN), ("price", {}), ("fluid", {}), ("threshold", {})],
)
def test_idle_fleet_serves_large(name: str, params: dict[str, float]) -> None:
    """With nothing to do and little traffic every load-aware policy gives the best quality."""
    assert tier_chosen(name, observation(), params) == LARGE


def test_slackfit_goes_down_with_the_endpoints_own_queue() -> None:
    """A queue of large requests that no longer fits sends the next one a tier down."""
    load = zero_load(6)
    load.waiting_prompt_tokens_C[[2, 5]] = 4000.0
    assert tier_chosen("slackfit", observation(load), MARGIN) == MEDIUM


@pytest.mark.parametrize("name", ["fluid", "threshold"])
def test_rate_beyond_medium_serves_small(name: str) -> None:
    """At a rate that medium cannot carry the policies that plan by the rate step down."""
    assert tier_chosen(name, observation(rate_rps=2200.0)) == SMALL


def test_threshold_plans_for_the_largest_tier_by_itself() -> None:
    """A small share of the largest tier gives it up early and leaves the tier below alone."""
    seen = observation(rate_rps=60.0)
    assert tier_chosen("threshold", seen, {"top_utilisation": 1.5, "utilisation": 0.5}) == LARGE
    assert tier_chosen("threshold", seen, {"top_utilisation": 0.05, "utilisation": 0.5}) == MEDIUM


@pytest.mark.parametrize(("slack_s", "tier"), [(0.4, LARGE), (0.08, MEDIUM), (0.02, SMALL)])
def test_greedy_prior_goes_by_the_profile_and_sees_no_load(slack_s: float, tier: int) -> None:
    """The tier follows from deadline and profile; twenty requests in front of it change nothing."""
    load = zero_load(6)
    load.in_flight_C[:] = 20.0
    load.remaining_output_tokens_C[:] = 160.0
    request = Request(0, slack_s, 100.0, 8.0)
    assert tier_chosen("greedy-prior", observation(request=request)) == tier
    assert tier_chosen("greedy-prior", observation(load, request=request)) == tier


NO_WEIGHTS = {"latency": 0.0, "queue": 0.0, "cost": 0.0}


@pytest.mark.parametrize("weight", ["latency", "cost"])
def test_routebalance_gives_quality_up_for_latency_and_cost(weight: str) -> None:
    """With no weights it takes the largest tier; a heavy one brings it down."""
    assert tier_chosen("routebalance", observation(), NO_WEIGHTS) == LARGE
    assert tier_chosen("routebalance", observation(), NO_WEIGHTS | {weight: 2.0}) < LARGE


def test_routebalance_moves_to_the_device_with_the_shorter_queue() -> None:
    """The queue's weight counts the device's work, of whichever tier."""
    load = zero_load(6)
    load.in_flight_C[[0, 5]] = [30.0, 1.0]
    load.remaining_output_tokens_C[[0, 5]] = [240.0, 1.0]
    policy = table.make_policy("routebalance", fleets.catalog(), NO_WEIGHTS | {"queue": 2.0})
    assert policy.decide(observation(load), np.random.default_rng(0)).action == 5


def test_picker_keeps_the_policys_tier_and_moves_the_endpoint() -> None:
    """`static-large+round-robin` visits the large endpoints in turn, whatever their load."""
    load = zero_load(6)
    load.in_flight_C[2] = 9.0
    load.remaining_output_tokens_C[2] = 70.0
    policy = table.make_policy("static-large+round-robin", fleets.catalog())
    rng = np.random.default_rng(0)
    assert [policy.decide(observation(load), rng).action for _ in range(3)] == [2, 5, 2]
    assert policy.name == "static-large+round-robin"


def test_unknown_picker_lists_the_known() -> None:
    """The error names every picker that exists."""
    with pytest.raises(UnknownPickerError, match=r"join-shortest-queue.*random"):
        table.make_policy("price+best", fleets.catalog())


@pytest.mark.parametrize("name", ["price", "debt-queue"])
def test_backlog_steps_down(name: str) -> None:
    """When every device has most of a deadline's work, the large tier is not chosen."""
    load = zero_load(6)
    load.in_flight_C[[2, 5]] = 14.0
    load.waiting_prompt_tokens_C[[2, 5]] = 3000.0
    load.remaining_output_tokens_C[[2, 5]] = 14.0 * 8.0
    assert tier_chosen(name, observation(load, rate_rps=200.0)) < LARGE


def test_price_of_a_device_rises_with_the_rate() -> None:
    """An idle fleet serves large to a trickle, and saves itself for heavy traffic."""
    tiers = [tier_chosen("price", observation(rate_rps=rate)) for rate in (1.0, 2000.0)]
    assert tiers == [LARGE, MEDIUM]


def test_greedy_steps_down_for_a_long_prompt() -> None:
    """A prompt that large cannot compute in the slack goes to medium."""
    assert (
        tier_chosen("greedy", observation(request=Request(0, 0.4, 3500.0, 8.0)), MARGIN) == MEDIUM
    )


def test_greedy_takes_the_fastest_when_nothing_fits() -> None:
    """With less slack than any tier needs, greedy loses the least time."""
    request = Request(0, 0.001, 100.0, 8.0)
    assert tier_chosen("greedy", observation(request=request)) == SMALL


def test_soft_deadline_keeps_quality_where_a_hard_one_gives_it_up() -> None:
    """A late answer that still earns is worth a larger tier."""
    hard = Request(1, 0.06, 100.0, 8.0)
    soft = dataclasses.replace(hard, reward_kind=RewardKind.SOFT, soft_decay_s=5.0)
    assert tier_chosen("price", observation(request=soft)) > tier_chosen(
        "price", observation(request=hard)
    )


def test_price_is_the_same_on_a_stretched_clock() -> None:
    """Stretching every time by one factor changes no decision of the price policy."""
    rng = np.random.default_rng(11)
    policy = table.make_policy("price", fleets.catalog())
    for _ in range(50):
        load = fleets.random_load(rng, 6, 20.0)
        rate = float(rng.uniform(10, 3000))
        actions = []
        for scale in (1.0, 7.0):
            seen = observe(
                fleets.fleet(2, speed=1.0 / scale),
                load,
                Request(0, 0.4 * scale, 100.0, 8.0),
                Signals(rate / scale, rate / scale, 0.0),
                np.random.default_rng(0),
            )
            actions.append(policy.decide(seen, rng).action)
        assert actions[0] == actions[1]


def test_unknown_policy_lists_the_known() -> None:
    """The error names every policy that exists."""
    with pytest.raises(UnknownPolicyError, match=r"static-large.*price.*dqn"):
        table.make_policy("nope", fleets.catalog())


@pytest.mark.parametrize(
    ("params", "message"),
    [({"margn": 0.5}, "no parameter 'margn'; known: margin"), ({"margin": 9.0}, "from 0.05 to 2")],
)
def test_bad_parameter_is_named(params: dict[str, float], message: str) -> None:
    """A wrong name or value is refused with the names and limits."""
    with pytest.raises(PolicyParameterError, match=message):
        table.make_policy("greedy", fleets.catalog(), params)


def test_version_changes_with_parameters() -> None:
    """Two sets of parameters have two versions, one set always the same."""
    versions = [
        table.make_policy("greedy", fleets.catalog(), {"margin": m}).version
        for m in (0.5, 0.6, 0.5)
    ]
    assert versions[0] == versions[2] != versions[1]


@pytest.mark.parametrize("name", table.LEARNED)
def test_learned_policy_without_snapshot_is_refused(name: str) -> None:
    """A learned policy says what it lacks."""
    with pytest.raises(table.MissingSnapshotError, match=f"{name}.*snapshot"):
        table.make_policy(name, fleets.catalog())
