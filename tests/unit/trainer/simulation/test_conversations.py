"""Workloads of conversations, and what the simulator makes of prefixes that devices have cached."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router.fleet import build_fleet
from router.profile import LatencyProfile
from router.seat import Stay
from tests.unit.router import fleets
from tests.unit.trainer.simulation.settings import config, spec
from trainer.simulation import state
from trainer.simulation.conversations import Talk, converse
from trainer.simulation.simulate import (
    FleetEvent,
    SimulationConfig,
    SimulationResult,
    simulate,
)
from trainer.simulation.workload import Workload, WorkloadError

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

LARGE_S, MEDIUM_S = 0.000084, 0.000024
"""Time of a prompt token on two tiers of the test profile, seconds."""


def conversations(seed: int = 1, **changes: Any) -> Workload:
    """Returns conversations in the middle of their traffic."""
    rng = np.random.default_rng(seed)
    given = {"rate_rps": 200.0, "duration_s": 20.0, "deadline_s": [0.4, 0.4], "task_share": [1, 1]}
    return converse(rng=rng, **{**given, **changes})


def test_a_conversation_grows_by_what_was_said() -> None:
    """Each prompt is the one before, its answer, and something new; a conversation has one task."""
    offered = conversations()
    talks = offered.conversation_N
    assert talks is not None
    assert len(offered) == pytest.approx(4_000, rel=0.1)
    assert offered.prompt_N[offered.arrival_N > 10.0].mean() == pytest.approx(124.0, rel=0.05)
    assert (np.diff(offered.arrival_N) >= 0.0).all()
    for talk in range(0, offered.conversation_count, 37):
        turns = np.flatnonzero(talks == talk)
        assert len(turns) >= 1
        assert len(set(offered.task_N[turns])) == 1
        new = np.diff(offered.prompt_N[turns]) - offered.output_N[turns][:-1]
        assert (new >= 1.0).all()
    assert talks.max() + 1 == offered.conversation_count == len(set(talks))


def test_turns_and_pauses_are_those_asked_for() -> None:
    """A mean of so many, so long apart."""
    offered = conversations(duration_s=400.0, rate_rps=20.0, talk=Talk(turns=3.0, pause_s=0.5))
    talks = offered.conversation_N
    assert talks is not None
    assert np.bincount(talks).mean() == pytest.approx(3.0, rel=0.1)
    pauses = [np.diff(offered.arrival_N[talks == talk]) for talk in range(500)]
    assert np.concatenate(pauses).mean() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    "wrong", [{"rate_rps": 0.0}, {"duration_s": -1.0}, {"talk": Talk(turns=0.5)}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    """By name."""
    with pytest.raises(WorkloadError, match="must be"):
        conversations(**wrong)


def test_a_rate_of_nearly_nothing_is_no_conversation() -> None:
    """An empty workload is one, too."""
    assert len(conversations(rate_rps=1e-6, duration_s=0.1)) == 0


def world(room: int, devices: int = 1, **changes: Any) -> SimulationConfig:
    """Returns devices with this room for prefixes in every tier."""
    tiers = {t: replace(p, prefix_cache_tokens=room) for t, p in fleets.profile().tiers.items()}
    profile = LatencyProfile("test", "assumed", tiers)
    fleet = build_fleet(fleets.catalog(), fleets.fleet(devices).endpoints, {"": profile})
    base = config(devices, **changes)
    return replace(base, fleet=fleet, profiles={"": profile})


def turns(*given: tuple[float, float, int, int]) -> Workload:
    """Returns requests by arrival, prompt, answer and conversation."""
    arrival_N, prompt_N, output_N, talk_N = (
        np.array(column) for column in zip(*given, strict=True)
    )
    return Workload(
        arrival_N.astype(np.float64),
        np.zeros(len(given), np.int64),
        prompt_N.astype(np.float64),
        output_N.astype(np.int64),
        np.full(len(given), 10.0),
        20.0,
        "turns",
        talk_N.astype(np.int64),
    )


def told(result: SimulationResult) -> list[tuple[Stay, float, float]]:
    """Returns what became of each conversation, and what was expected and found cached."""
    stays = [Stay(int(stay)) for stay in result.stay_N]
    return list(zip(stays, result.expected_N.tolist(), result.hit_N.tolist(), strict=True))


def test_a_prefix_that_is_cached_takes_no_time() -> None:
    """120 tokens and an answer of 8 are eight blocks; their time is saved to the microsecond."""
    offered = turns((1.0, 120, 8, 0), (3.0, 160, 8, 0))
    with_cache = simulate(world(10_000), offered, spec("static-large"))
    without = simulate(world(0), offered, spec("static-large"))
    assert told(with_cache) == [(Stay.NEW, 0.0, 0.0), (Stay.KEPT, 128.0, 128.0)]
    assert told(without) == [(Stay.NEW, 0.0, 0.0), (Stay.KEPT, 0.0, 0.0)]
    saved_N = without.latency_N - with_cache.latency_N
    np.testing.assert_allclose(saved_N, [0.0, 128.0 * LARGE_S], atol=1e-12)
    assert with_cache.predicted_N[1] == pytest.approx(without.predicted_N[1] - saved_N[1])


def test_the_cache_drops_what_was_used_longest_ago() -> None:
    """Three conversations of 128 tokens where two fit; the router expects what is so."""
    offered = turns(
        (1.0, 120, 8, 0), (2.0, 120, 8, 1), (3.0, 130, 8, 0), (4.0, 120, 8, 2),
        (5.0, 140, 8, 1), (6.0, 150, 8, 0),
    )  # fmt: skip
    found = told(simulate(world(280), offered, spec("static-large")))
    assert [hit for _, _, hit in found] == [0.0, 0.0, 128.0, 0.0, 0.0, 0.0]
    assert all(expected <= hit for _, expected, hit in found)


def test_a_lost_device_has_nothing_cached_when_it_is_back() -> None:
    """The router does not know that; it expects too much, once."""
    offered = turns((1.0, 120, 8, 0), (5.0, 160, 8, 0), (7.0, 180, 8, 0))
    events = (FleetEvent(2.0, 0, "lost"), FleetEvent(3.0, 0, "back"))
    found = told(simulate(world(10_000, events=events), offered, spec("static-large")))
    assert found == [(Stay.NEW, 0.0, 0.0), (Stay.KEPT, 128.0, 0.0), (Stay.KEPT, 160.0, 160.0)]


def test_routers_that_are_told_nothing_hit_by_chance() -> None:
    """What is cached depends on where a request goes, not on who knows of it."""
    offered = turns((1.0, 120, 8, 0), (3.0, 160, 8, 0))
    untold = world(10_000, conversation_margin=-1.0)
    found = told(simulate(untold, offered, spec("static-large")))
    assert found == [(Stay.NONE, 0.0, 0.0), (Stay.NONE, 0.0, 128.0)]


def test_routers_forget() -> None:
    """After the time that settings say; the cache does not."""
    offered = turns((1.0, 120, 8, 0), (3.0, 160, 8, 0))
    found = told(simulate(world(10_000, conversation_s=1.0), offered, spec("static-large")))
    assert found == [(Stay.NEW, 0.0, 0.0), (Stay.NEW, 0.0, 128.0)]


def test_without_conversations_a_cache_changes_nothing() -> None:
    """Not a digit."""
    offered = replace(conversations(), conversation_N=None)
    found = [simulate(world(room, 2), offered, spec("price"), 3) for room in (0, 100_000)]
    for name in ("status_N", "action_N", "reward_N", "latency_N", "predicted_N"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))


@pytest.mark.parametrize("policy", ["price", "greedy"])
def test_conversations_stay_and_prefixes_are_expected_where_they_are(policy: str) -> None:
    """One router expects about what is cached, and keeps most conversations."""
    offered = conversations(rate_rps=150.0)
    result = simulate(world(100_000, 2), offered, spec(policy))
    stays = np.bincount(result.stay_N, minlength=len(Stay))
    assert stays[Stay.KEPT] > 2 * stays[Stay.WORTH :].sum()
    answered = result.status_N == state.ANSWERED
    assert result.hit_N[answered].sum() > 0.3 * offered.prompt_N[answered].sum()
    assert result.expected_N.sum() == pytest.approx(result.hit_N.sum(), rel=0.1)
    again = simulate(world(100_000, 2), offered, spec(policy))
    np.testing.assert_array_equal(again.reward_N, result.reward_N)


def test_a_conversation_comes_through_one_router_where_balancers_have_affinity() -> None:
    """Else its requests come through any, which know nothing of each other's conversations."""
    offered = conversations(rate_rps=100.0, duration_s=10.0)
    new = []
    for homed in (True, False):
        several = world(100_000, 2, routers=4, are_conversations_homed=homed, homes=None)
        result = simulate(several, offered, spec("price"))
        new.append(np.mean(result.stay_N == Stay.NEW))
    assert new[0] < 0.5 < new[1] + 0.2
    assert new[1] > new[0] + 0.2
