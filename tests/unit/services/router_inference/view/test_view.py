"""Fleet, load and traffic follow the same state, and forget it together."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from router.explanation import Explainer
from router.home import WHOLE, Share
from services.router_inference.view.seen import SeenState
from tests.unit.services.router_inference.parts import Rig, make_rig
from tests.unit.services.router_inference.scenario import scenario
from tests.unit.services.router_inference.view.states import endpoint, look, state


@scenario
async def test_own_part_of_load_and_traffic_is_told_apart() -> None:
    """Beside others, the own load and share are known; alone, everything is the router's own."""
    rig = make_rig()
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    view.load.ledger.dispatch(1, ("small", "e0"), 10.0, 8.0)
    for i in range(10):
        view.traffic.on_arrival(now_s + 0.01 * i, 10.0)
    now_s += 0.1
    request = rig.job().request
    assert view.traffic.query(request, now_s).own_share == 1.0
    own_long = view.traffic.query(request, now_s).rate_long_rps
    others = state(endpoint(0))
    view.apply(replace(others, rate_long_rps=4.0 * own_long), now_s)
    assert view.load.own().in_flight_C.tolist() == [1.0, 0.0, 0.0]
    query = view.traffic.query(request, now_s)
    assert query.own_share == pytest.approx(0.25)
    assert query.own_rate_rps == pytest.approx(query.rate_short_rps - 20.0)


@scenario
async def test_the_share_is_that_of_rates_reckoned_alike() -> None:
    """What the monitor saw of a mesh that has just begun to serve trails for ten seconds."""
    rig = make_rig()
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    for i in range(10):
        view.traffic.on_arrival(now_s + 0.01 * i, 10.0)
    now_s += 0.1
    own_long = view.traffic.own_rates_rps(now_s)[1]
    seen = replace(state(endpoint(0)), rate_long_rps=1e-3, others_long_rps=3.0 * own_long)
    view.apply(seen, now_s)
    query = view.traffic.query(rig.job().request, now_s)
    assert query.own_share == pytest.approx(0.25)
    assert query.rate_long_rps == pytest.approx(4.0 * own_long)
    view.apply(replace(seen, rate_long_rps=1e6), now_s)
    assert view.traffic.query(rig.job().request, now_s).own_share == pytest.approx(0.25)


@scenario
async def test_a_state_is_as_old_as_what_it_tells_of_the_others() -> None:
    """Decisions count from their reports; that the monitor is there, from when the state came."""
    rig = make_rig(state_max_age_s=2.0)
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    view.apply(replace(state(endpoint(0)), others_age_s=0.75), now_s)
    await asyncio.sleep(0.25)
    now_s += 0.25
    assert view.traffic.query(rig.job().request, now_s).state_age_s == pytest.approx(1.0)
    assert view.state_age_s(now_s) == pytest.approx(0.25)
    # Another router may be silent for longer than a state is used.
    view.apply(replace(state(endpoint(0)), others_age_s=2.9), now_s)
    job = rig.job()
    await rig.answer(job)
    assert job.choice is not None
    assert job.choice.inputs.asked.query.state_age_s == pytest.approx(2.9)
    assert not job.choice.fallback_reason
    await asyncio.sleep(3.0)
    assert look(rig).tolist() == [1.0] * 3
    assert view.is_alone


@scenario
async def test_a_stale_state_is_not_used() -> None:
    """Too old: own ledger alone, health forgotten (but not a drain), no age pretended."""
    rig = make_rig(state_max_age_s=2.0)
    view = rig.core.view
    view.apply(
        state(endpoint(0, 0.0, "DOWN"), endpoint(1, 0.0, "DRAINING")), rig.clock.monotonic_s()
    )
    assert look(rig).tolist() == [0.0] * 6
    request = rig.job().request
    query = view.traffic.query(request, rig.clock.monotonic_s())
    assert query.rate_short_rps == pytest.approx(20.0)
    await asyncio.sleep(2.1)
    assert look(rig).tolist() == [1.0] * 3 + [0.0] * 3
    assert not any(view.load.current().in_flight_C)
    assert view.is_alone
    query = view.traffic.query(request, rig.clock.monotonic_s())
    assert (query.rate_short_rps, query.state_age_s) == (0.0, 0.0)
    view.apply(state(endpoint(0)), rig.clock.monotonic_s())
    assert not view.is_alone


def home_of(rig: Rig) -> set[str]:
    """Returns the endpoints that are home."""
    view = rig.core.view
    fleet = view.current_fleet(rig.clock.monotonic_s())
    return {view.fleet.targets[row].endpoint for row in np.flatnonzero(fleet.arrays.home_C)}


def four(topology: int = 1, home: Share = WHOLE) -> SeenState:
    """Returns a state of four endpoints."""
    endpoints = [endpoint(index) for index in range(4)]
    return replace(state(*endpoints, topology=topology), home=home)


@scenario
async def test_a_router_lives_where_the_state_says() -> None:
    """Everywhere at first."""
    rig = make_rig()
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    view.apply(four(), now_s)
    assert home_of(rig) == {"e0", "e1", "e2", "e3"}
    view.apply(four(home=Share(0.5, 1.0)), now_s)
    assert home_of(rig) == {"e2", "e3"}
    job = rig.job()
    await rig.answer(job)
    assert job.endpoint in {"e2", "e3"}


@scenario
async def test_a_home_outlives_the_state_and_moves_with_the_fleet() -> None:
    """Without the monitor the others are still there."""
    rig = make_rig(state_max_age_s=2.0)
    view = rig.core.view
    view.apply(four(home=Share(0.5, 1.0)), rig.clock.monotonic_s())
    await asyncio.sleep(3.0)
    assert home_of(rig) == {"e2", "e3"}
    two = replace(state(endpoint(0), endpoint(1), topology=2), home=Share(0.5, 1.0))
    view.apply(two, rig.clock.monotonic_s())
    assert home_of(rig) == {"e1"}


@scenario
async def test_homes_can_be_switched_off() -> None:
    """By the setting."""
    rig = make_rig(homes=False)
    rig.core.view.apply(four(home=Share(0.5, 1.0)), rig.clock.monotonic_s())
    assert home_of(rig) == {"e0", "e1", "e2", "e3"}


@scenario
async def test_an_explanation_outlives_a_move() -> None:
    """What was home when a decision was taken is kept with it."""
    rig = make_rig()
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    view.apply(four(home=Share(0.5, 1.0)), now_s)
    job = rig.job()
    await rig.answer(job)
    view.apply(four(home=Share(0.0, 0.5)), now_s)
    assert job.choice is not None
    found = Explainer().explain(job.choice.inputs)
    assert found.allowed_C.tolist() == [False] * 6 + [True] * 6
    assert found.away_C.tolist() == [True] * 6 + [False] * 6
