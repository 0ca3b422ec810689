"""The simulator's claim is that it is the router: the same requests, decision by decision.

What is real on the live side: everything from the validated request to the experience record. What
is left out, because only a live router has it: the slowness it learns per device, breakers and
retries of endpoints that fail, the rescue of a request whose endpoint says nothing at all, and the
time that answers travel. Several routers hear of each other through the monitor's parts, all at the
same moments and with equal homes, as the simulator has it. Policies that draw at random are left
out too: each world has dice of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from router.home import Share
from router.seat import Stay
from tests.twin.worlds import (
    APART,
    Setting,
    Told,
    lived,
    only,
    policy_of,
    simulated,
    through,
    with_hopeless,
    workload,
)
from trainer.shipped import POLICIES, shipped
from trainer.simulation.workload import Times, gamma_renewal, piecewise, poisson

pytestmark = pytest.mark.timeout(600)  # the first run on a machine compiles

SNAPSHOT = shipped(POLICIES, "opt-a100.safetensors").read_bytes()
MIXED = (0.4, 0.3, 0.15, 0.15, 0.0)
"""Half of the requests have a hard deadline for the answer, the others a soft one, or one for the
first token."""
READ_ALONG = (0.2, 0.1, 0.1, 0.1, 0.5)
"""Half of the requests have a due time for each token."""
LOADS: dict[str, Callable[[np.random.Generator], Times]] = {
    "calm": lambda rng: poisson(80.0, 1.5, rng),
    "burst": lambda rng: gamma_renewal(300.0, 4.0, 1.2, rng),
    "overload": lambda rng: poisson(1500.0, 0.6, rng),
}
RETURNING: dict[str, Callable[[np.random.Generator], Times]] = {
    "returning": lambda rng: piecewise([(0.6, 300.0), (0.5, 0.0), (0.5, 300.0)], rng),
}
"""Traffic that stops and comes back."""
WORLDS = {
    "shared": Setting(),
    "rescues": Setting(placement=APART),
    "slow devices": Setting(placement=APART, slow=1.6),
    "no target": Setting(target=0.0),
    "room kept": Setting(reserve="peak"),
    "net off": Setting(safety=False),
    "a home": Setting(home=Share(0.0, 0.5)),
    "conversations": Setting(talks=True),
    "prefixes cached": Setting(talks=True, cache=4_000),
    "prefixes and rescues": Setting(placement=APART, slow=1.6, talks=True, cache=20_000),
    "classes": Setting(classes=(0.25, 0.45, 0.3)),
    "hopeless deadlines": Setting(hopeless=0.2),
    "hopeless deadlines, classes": Setting(hopeless=0.2, classes=(0.25, 0.45, 0.3)),
    "classes, no target": Setting(classes=(0.6, 0.1, 0.3), target=0.0),
    "two routers": Setting(routers=2),
    "three routers": Setting(routers=3),
    "two routers, seen late": Setting(routers=2, report_s=0.125, late_s=0.25, reserve="half"),
    "two routers, rescues": Setting(routers=2, placement=APART, slow=1.6),
}
PACED = {
    "read along": Setting(),
    "read fast": Setting(interval_s=0.004),
    "read along, rescues": Setting(placement=APART, slow=1.6),
    "read along, net off": Setting(safety=False),
}
"""Worlds of requests with a due time for each token."""
WORLDS |= PACED
COMPARED = ("static-large", "greedy", "price", "dqn")


def told_twice(policy: str, load: str, world: str, seed: int) -> tuple[Told, Told]:
    """Returns what happened to a workload, live and simulated."""
    arrival_N = (LOADS | RETURNING)[load](np.random.default_rng([seed, 0]))
    shares = READ_ALONG if world in PACED else MIXED
    offered = workload(arrival_N, shares, 0.4, seed, talks=WORLDS[world].talks)
    if WORLDS[world].classes:
        offered = offered.with_classes(WORLDS[world].classes, np.random.default_rng([seed, 2]))
    if WORLDS[world].hopeless:
        rng = np.random.default_rng([seed, 3])
        offered = with_hopeless(offered, WORLDS[world].hopeless, rng)
    if WORLDS[world].routers > 1:
        rng = np.random.default_rng([seed, 4])
        offered = through(offered, WORLDS[world].routers, rng)
    live = lived(offered, policy_of(policy, SNAPSHOT), WORLDS[world])
    return live, simulated(offered, policy_of(policy, SNAPSHOT), WORLDS[world])


def assert_alike(live: Told, simulation: Told) -> None:
    """Compares what happened to the same requests, one by one."""
    pairs = zip(live.stories, simulation.stories, strict=True)
    different = [(i, *pair) for i, pair in enumerate(pairs) if pair[0] != pair[1]]
    assert not different, f"{len(different)} requests, first (live, simulated): {different[:3]}"
    for name in ("first_reward_N", "reward_N", "latency_N"):
        np.testing.assert_allclose(
            getattr(live, name), getattr(simulation, name), rtol=0.0, atol=1e-9, err_msg=name
        )


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("policy", COMPARED)
def test_the_simulator_is_the_router(policy: str, load: str, world: str) -> None:
    """Decisions, refusals, rescues, ends, rewards and latencies agree one by one."""
    for seed in (1, 2) if world == "slow devices" else (3,):
        assert_alike(*told_twice(policy, load, world, seed))


@pytest.mark.parametrize("world", ["shared", "two routers", "two routers, seen late"])
@pytest.mark.parametrize("policy", ["price", "dqn"])
def test_traffic_that_comes_back_is_the_same_to_both(policy: str, world: str) -> None:
    """What it was before, and what the others' was, is remembered alike."""
    assert_alike(*told_twice(policy, "returning", world, 3))


def test_what_routers_know_of_each_other_matters_in_these_worlds() -> None:
    """Requests go elsewhere where it comes late, so that comparing says something.

    Not in an overload: there all that is admitted goes to the smallest tier at home.
    """
    early, late = (
        told_twice("price", "burst", world, 3)[0].stories
        for world in ("two routers", "two routers, seen late")
    )
    assert early != late


def test_the_worlds_are_eventful() -> None:
    """Refusals, rescues, misses and answers in time all occur, so that comparing says something."""
    ends: set[str] = set()
    rescued = 0
    for load, world in (("overload", "shared"), ("burst", "slow devices")):
        told, _ = told_twice("static-large", load, world, 1)
        ends |= {story.end for story in told.stories}
        rescued += sum(story.is_rescued for story in told.stories)
    assert ends == {"on_time", "late", "refused"}
    assert rescued > 50


def test_conversations_are_kept_and_moved_in_these_worlds() -> None:
    """Everything but a gone seat occurs, and prefixes are known, so that comparing says something.

    Nobody leaves in these worlds.
    """
    stays: Counter[Stay] = Counter()
    cached = 0.0
    for policy, load in (("price", "burst"), ("price", "overload"), ("greedy", "burst")):
        told, _ = told_twice(policy, load, "prefixes cached", 3)
        stays += Counter(story.stay for story in told.stories)
        cached += sum(story.cached for story in told.stories)
    assert set(stays) >= {Stay.NONE, Stay.NEW, Stay.KEPT, Stay.DEADLINE, Stay.WORTH}
    assert stays[Stay.KEPT] > 100
    assert cached > 1000.0


@pytest.mark.parametrize("load", ["burst", "overload"])
def test_classes_matter_in_these_worlds(load: str) -> None:
    """Requests fare otherwise with classes than without, so that comparing says something."""
    mixed, plain = (told_twice("price", load, world, 3)[0] for world in ("classes", "shared"))
    assert mixed.stories != plain.stories


def test_hopeless_deadlines_are_nobody_elses_in_these_worlds() -> None:
    """They are refused, and the other requests fare as if there were only them."""
    arrival_N = LOADS["calm"](np.random.default_rng([3, 0]))
    plain = workload(arrival_N, MIXED, 0.4, 3)
    mixed = with_hopeless(plain, 0.6, np.random.default_rng([3, 3]))
    is_other_N = mixed.slack_N == plain.slack_N
    assert 0.3 < np.mean(is_other_N) < 0.7
    stories = lived(mixed, policy_of("price", SNAPSHOT), Setting()).stories
    alone = lived(only(mixed, is_other_N), policy_of("price", SNAPSHOT), Setting()).stories
    others = [story for story, is_other in zip(stories, is_other_N, strict=True) if is_other]
    assert others == alone
    assert len({story.tier for story in others}) > 1


def test_targets_matter_in_these_worlds() -> None:
    """Requests take other tiers with a target than without, so that comparing says something."""
    held, free = (told_twice("price", "overload", world, 3)[0] for world in ("shared", "no target"))
    assert held.stories != free.stories


def test_due_times_of_tokens_matter_in_these_worlds() -> None:
    """Fewer are admitted that read fast, and streams are rescued and late."""
    slow, fast, rescued = (
        told_twice("static-large", "burst", world, 3)[0].stories
        for world in ("read along", "read fast", "read along, rescues")
    )
    refused = [sum(story.end == "refused" for story in stories) for stories in (slow, fast)]
    assert refused[0] < refused[1]
    assert {story.end for story in slow} == {"on_time", "late", "refused"}
    assert sum(story.is_rescued for story in rescued) > 50
