"""Own traffic, the others' and how answers keep to predictions."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from services.router_inference.view.traffic import Arrivals
from services.router_inference.workers.memory import Memory
from services.router_inference.workers.siblings import NoSiblings, SharedSiblings
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.scenario import scenario
from tests.unit.services.router_inference.view.states import endpoint, state


@scenario
async def test_answers_slower_than_predicted_reach_the_query() -> None:
    """What ends late beside its prediction is in the next decision's query."""
    rig = make_rig()
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    request = rig.job().request
    assert view.traffic.query(request, now_s).slowdown == 1.0
    for k in range(100):
        view.traffic.on_compared(now_s + 0.001 * k, 0.4, 0.13, 0.1, finished=True)
    assert view.traffic.query(request, now_s + 0.1).slowdown == pytest.approx(1.19, abs=0.03)
    view.apply(state(endpoint(0)), now_s + 0.1)
    slowdown = view.traffic.latency_slowdown(now_s + 0.1)
    assert view.traffic.query(request, now_s + 0.1).slowdown == slowdown


def test_rates_and_burstiness_are_those_of_all_workers() -> None:
    """Each tells what one process would, however the kernel shares connections out."""
    memory = Memory(worker_count=3, counts_width=1)
    workers = [Arrivals(0.0, SharedSiblings(memory, number)) for number in (1, 2, 3)]
    alone = Arrivals(0.0, NoSiblings())
    rng = random.Random(7)
    now_s = 0.0
    for _ in range(4000):
        now_s += 0.001 if rng.random() < 0.9 else 0.05  # clumps
        alone.count(now_s, 10.0)
        rng.choices(workers, weights=(8, 3, 1))[0].count(now_s, 10.0)
    for worker in workers:
        assert worker.rates_rps(now_s) == pytest.approx(alone.rates_rps(now_s), rel=1e-9)
        assert worker.burstiness() == pytest.approx(alone.burstiness(), rel=0.35)


@pytest.mark.parametrize("seen", [0, 1, 30])
def test_an_arrival_that_was_none_is_none_to_all_workers(seen: int) -> None:
    """One that takes its last arrival back tells, and hears, what it would have without it."""
    rates, burstiness = [], []
    for is_taken_back in (False, True):
        memory = Memory(worker_count=2, counts_width=1)
        first, second = (Arrivals(1.0, SharedSiblings(memory, number)) for number in (1, 2))
        for tick in range(seen):
            first.count(1.0 + 0.01 * tick * tick, 10.0)
        if is_taken_back:
            first.count(15.0, 900.0)
            first.take_back()
        for tick in range(5):
            second.count(15.1 + 0.01 * tick, 10.0)
        rates += [each.rates_rps(15.2) for each in (first, second)]
        burstiness += [each.burstiness() for each in (first, second)]
        assert first.mean_prompt_tokens == (10.0 if seen else 0.0)
    assert rates[:2] == rates[2:]
    assert burstiness[:2] == burstiness[2:]


def test_a_successor_goes_on_with_what_was_seen() -> None:
    """A worker that is killed takes no arrivals out of the rates."""
    memory = Memory(worker_count=2, counts_width=1)
    first = Arrivals(0.0, SharedSiblings(memory, 1))
    for tick in range(1, 101):
        first.count(0.01 * tick, 10.0)
    memory.retire(1, lambda counts: counts)
    successor = Arrivals(1.0, SharedSiblings(memory, 1))
    assert successor.rates_rps(1.0) == first.rates_rps(1.0)
    other = Arrivals(1.0, SharedSiblings(memory, 2))
    assert other.rates_rps(1.0) == first.rates_rps(1.0)


@scenario
async def test_a_query_has_the_request_and_the_traffic() -> None:
    """Nothing of what a kernel may ask for is left at its default but the policy's own draw."""
    rig = make_rig()
    traffic, now_s = rig.core.view.traffic, rig.clock.monotonic_s()
    for k in range(30):
        traffic.on_arrival(now_s + 0.001 * k * k, 80.0)
        traffic.on_compared(now_s, 0.4, 0.3, 0.1, finished=True)
    rig.core.view.apply(state(endpoint(0)), now_s + 0.9)
    request = rig.job(task="soft", deadline_s=0.3).request
    query = traffic.query(request, now_s + 1.0)
    assert query[:6] == (1, 0.3, request.prompt_tokens, 8.0, request.event_tokens, 0.2)
    assert query.mean_prompt_tokens == traffic.mean_prompt_tokens == pytest.approx(80.0)
    assert query.own_rate_rps == traffic.own_rate_rps(now_s + 1.0) > 0.0
    assert query.rate_short_rps == query.own_rate_rps + 20.0
    assert query.rate_long_rps > 0.0
    assert query.state_age_s == pytest.approx(0.1)
    assert query.draw == 0.0
    assert query.own_share <= 1.0
    assert query.burstiness != 1.0
    assert query.slowdown > 1.0


@scenario
async def test_traffic_that_returns_is_everybodys() -> None:
    """Until a state can tell what the other routers get, they are taken to get what they got."""
    rig = make_rig()
    view, request, now_s = rig.core.view, rig.job().request, rig.clock.monotonic_s()
    view.apply(state(endpoint(0)), now_s)
    for tick in range(1, 201):
        view.traffic.on_arrival(now_s + 0.01 * tick, 80.0)
        query = view.traffic.query(request, now_s + 0.01 * tick)
    assert query.rate_short_rps - query.own_rate_rps == pytest.approx(20.0)

    back_s = now_s + 5.0
    quiet = replace(state(endpoint(0)), other_rate_rps=0.0)
    for told_s, others_rps in ((back_s - 0.1, 20.0), (back_s + 0.1, 20.0), (back_s + 0.3, 0.0)):
        view.apply(quiet, told_s)
        asked_s = max(back_s, told_s) + 0.001
        view.traffic.on_arrival(asked_s, 80.0)
        query = view.traffic.query(request, asked_s)
        assert query.rate_short_rps - query.own_rate_rps == pytest.approx(others_rps)


@scenario
async def test_a_state_cannot_tell_what_came_after_its_reports() -> None:
    """It may come after traffic has returned and say what was before."""
    rig = make_rig()
    view, request, now_s = rig.core.view, rig.job().request, rig.clock.monotonic_s()
    view.apply(state(endpoint(0)), now_s)
    for tick in range(1, 201):
        view.traffic.on_arrival(now_s + 0.01 * tick, 80.0)
        view.traffic.query(request, now_s + 0.01 * tick)
    back_s = now_s + 5.0
    view.traffic.on_arrival(back_s, 80.0)
    quiet = replace(state(endpoint(0)), other_rate_rps=0.0)
    for age_s, others_rps in ((1.0, 20.0), (0.0, 0.0)):
        view.apply(replace(quiet, others_age_s=age_s), back_s + 0.5)
        query = view.traffic.query(request, back_s + 0.5)
        assert query.rate_short_rps - query.own_rate_rps == pytest.approx(others_rps)


@scenario
async def test_room_is_kept_for_a_burst_that_may_return() -> None:
    """Policies are told a share of its rate until a minute after; reports tell what arrives."""
    rates = {}
    for kept in ("none", "half", "peak"):
        rig = make_rig(reserve=kept)
        traffic, request, now_s = rig.core.view.traffic, rig.job().request, rig.clock.monotonic_s()
        for tick in range(1000):
            traffic.on_arrival(now_s + 0.002 * tick, 10.0)
            traffic.query(request, now_s + 0.002 * tick)
        later_s = now_s + 10.0
        query = traffic.query(request, later_s)
        rates[kept] = query.rate_short_rps
        assert query.rate_long_rps >= query.rate_short_rps
        assert traffic.own_rate_rps(later_s) < 1.0
        assert traffic.query(request, now_s + 90.0).rate_short_rps < 1.0
    assert rates["none"] < 1.0
    assert 350.0 < rates["peak"] < 500.0
    assert rates["half"] == pytest.approx(0.5 * rates["peak"])
