"""What a router says of itself."""

from __future__ import annotations

import asyncio

import pytest

from services.router_inference.health_notes import NO_USABLE_ENDPOINT, STALE_SYSTEM_STATE
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.scenario import scenario
from tests.unit.services.router_inference.view.states import endpoint, state


@scenario
async def test_own_and_other_requests_are_told_apart() -> None:
    """A candidate shows what this router has under way there, and what the others have."""
    rig = make_rig()
    rig.core.view.load.ledger.dispatch(1, ("small", "e0"), 10.0, 8.0)
    rig.core.view.apply(state(endpoint(0)), rig.clock.monotonic_s())
    (small, *_) = rig.core.status.read().candidates
    assert (small.tier, small.own_in_flight, small.other_in_flight) == ("small", 1, 3)


@scenario
async def test_a_candidate_that_may_not_be_chosen_says_why() -> None:
    """What the monitor gave as the reason, or what the own breaker saw."""
    rig = make_rig()
    now_s = rig.clock.monotonic_s()
    rig.core.view.apply(state(endpoint(0), endpoint(1, 0.0, "DOWN")), now_s)
    breaker = rig.core.view.fleet.targets[0].breaker
    while breaker.settled:
        breaker.on_failure(now_s, "TIER_UNAVAILABLE")
    reasons = [candidate.reason for candidate in rig.core.status.read().candidates]
    assert reasons == ["ejected: TIER_UNAVAILABLE", "", "", "DOWN", "DOWN", "DOWN"]


@scenario
async def test_a_state_that_grows_old_degrades_the_mesh() -> None:
    """The reason holds until a newer state comes."""
    rig = make_rig(state_max_age_s=2.0)
    rig.core.view.apply(state(endpoint(0)), rig.clock.monotonic_s())
    assert STALE_SYSTEM_STATE not in rig.core.status.read().degraded_reasons
    await asyncio.sleep(2.5)
    status = rig.core.status.read()
    assert STALE_SYSTEM_STATE in status.degraded_reasons
    assert status.state_age_s == pytest.approx(2.5)
    rig.core.view.apply(state(endpoint(0)), rig.clock.monotonic_s())
    assert STALE_SYSTEM_STATE not in rig.core.status.read().degraded_reasons


@scenario
async def test_a_mesh_without_a_usable_endpoint_says_so() -> None:
    """All endpoints down is a reason of its own."""
    rig = make_rig()
    rig.core.view.apply(state(endpoint(0, 0.0, "DOWN")), rig.clock.monotonic_s())
    assert NO_USABLE_ENDPOINT in rig.core.status.read().degraded_reasons


@scenario
async def test_predictions_are_those_of_a_typical_request_now() -> None:
    """They rise with the load; where nothing is usable there are none."""
    rig = make_rig()
    before = [each.predicted_s for each in rig.core.status.read().candidates]
    rig.core.view.load.ledger.dispatch(1, ("large", "e0"), 10.0, 8.0)
    after = [each.predicted_s for each in rig.core.status.read().candidates]
    assert all(late > early > 0.0 for early, late in zip(before, after, strict=True))
    rig.core.view.apply(state(endpoint(0, 0.0, "DOWN")), rig.clock.monotonic_s())
    found = rig.core.status.read().candidates
    assert {each.reason for each in found} == {"DOWN"}
    assert {each.predicted_s for each in found} == {0.0}


@scenario
async def test_gauges_of_candidates_are_those_of_the_fleet() -> None:
    """Made when it changes, and only then: a scrape at any other moment misses none of them."""
    rig = make_rig(endpoint_count=2)
    status, registry = rig.core.status, rig.app.registry

    def shown(endpoint: str) -> float | None:
        status._show(rig.clock.monotonic_s())
        labels = {"tier": "small", "endpoint": endpoint}
        return registry.get_sample_value("tiercel_candidate_in_flight", labels)

    rig.core.view.load.ledger.dispatch(1, ("small", "e1"), 10.0, 8.0)
    assert (shown("e0"), shown("e1")) == (0.0, 1.0)
    made = status._candidate_gauges
    rig.core.view.load.ledger.finish(1)
    assert shown("e1") == 0.0
    assert status._candidate_gauges is made
    assert registry.get_sample_value("tiercel_device_slowness", {"device": "e1"}) == 1.0
    rig.core.view.apply(state(endpoint(0)), rig.clock.monotonic_s())
    assert (shown("e0"), shown("e1")) == (0.0, None)
    assert registry.get_sample_value("tiercel_device_slowness", {"device": "e1"}) is None
