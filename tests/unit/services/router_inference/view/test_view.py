"""Fleet, load and traffic follow the same state, and forget it together."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.unit.services.router_inference.parts import make_rig
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
