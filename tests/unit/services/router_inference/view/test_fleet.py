"""Candidates come, go, close and slow down."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from router.fleet import EndpointSpec
from services.common.convert import endpoint_of_settings
from services.router_inference.view.seen import SeenEndpoint
from tests.unit.services.router_inference.parts import PROFILE, make_rig
from tests.unit.services.router_inference.scenario import scenario
from tests.unit.services.router_inference.view.states import ALL, endpoint, look, state


@scenario
async def test_endpoints_come_and_go_with_the_state() -> None:
    """The fleet follows the state's endpoint list; requests on an endpoint that left do no harm."""
    rig = make_rig()
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    view.apply(state(endpoint(0), endpoint(1), topology=1), now_s)
    assert view.fleet.candidates == tuple((t, f"e{i}") for i in range(2) for t in ALL)
    view.load.ledger.dispatch(1, ("small", "e0"), 10.0, 8.0)
    view.apply(state(endpoint(1), topology=2), now_s)
    assert view.fleet.candidates == tuple((tier, "e1") for tier in ALL)
    assert not any(view.load.current().in_flight_C)
    view.load.ledger.finish(1)
    job = rig.job()
    await rig.answer(job)
    assert job.endpoint == "e1"


@scenario
async def test_health_closes_and_ramps_candidates() -> None:
    """Weight per endpoint; a tier that is not ready is closed alone."""
    rig = make_rig()
    partial = SeenEndpoint(endpoint(1).spec, 1.0, frozenset({"small"}), "PARTIAL")
    rig.core.view.apply(state(endpoint(0, 0.25), partial), rig.clock.monotonic_s())
    assert look(rig).tolist() == [0.25, 0.25, 0.25, 1.0, 0.0, 0.0]
    assert rig.core.view.fleet.unusable_reason(4) == "PARTIAL"


@scenario
async def test_an_ejected_candidate_is_closed_at_the_next_look() -> None:
    """A breaker that changes tells the view by itself, whoever reported the failures."""
    rig = make_rig()
    assert look(rig).tolist() == [1.0, 1.0, 1.0]
    breaker, now_s = rig.core.view.fleet.targets[1].breaker, rig.clock.monotonic_s()
    while breaker.settled:
        breaker.on_failure(now_s, "UNAVAILABLE")
    assert look(rig).tolist() == [1.0, 0.0, 1.0]


@scenario
async def test_a_breaker_outlives_a_change_of_the_fleet() -> None:
    """Another endpoint that joins does not bring a failing candidate back."""
    rig = make_rig()
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    breaker = view.fleet.targets[1].breaker
    while breaker.settled:
        breaker.on_failure(now_s, "UNAVAILABLE")
    view.apply(state(endpoint(0), endpoint(1)), now_s)
    assert view.fleet.targets[1].breaker is breaker
    assert look(rig).tolist() == [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]


@scenario
async def test_an_endpoint_this_router_cannot_use_is_named() -> None:
    """A profile or tier nobody knows here is left out and shown, not fatal."""
    rig = make_rig()
    odd = SeenEndpoint(
        EndpointSpec("odd", "127.0.0.1:9100", "odd", ALL, profile="nowhere"),
        1.0, frozenset(ALL), "",
    )  # fmt: skip
    rig.core.view.apply(state(endpoint(0), odd), rig.clock.monotonic_s())
    assert rig.core.view.fleet.unknown_endpoints == ("odd",)
    assert "UNKNOWN_ENDPOINTS" in rig.core.status.read().degraded_reasons


@scenario
async def test_a_slow_device_stretches_its_predictions_and_no_others() -> None:
    """Answers at twice their prediction double the times of that device and of no other."""
    rig = make_rig()
    view = rig.core.view
    fleet = view.current_fleet(rig.clock.monotonic_s())
    before_s_C = fleet.arrays.step_s_C.copy()
    row = fleet.row["large", "e0"]
    device = int(fleet.arrays.device_C[row])
    for _ in range(300):
        view.fleet.slowness.observe(fleet.devices[device], 0.2, 0.1, finished=True)
        await asyncio.sleep(0.05)
        assert view.current_fleet(rig.clock.monotonic_s()) is fleet
    ratio_C = fleet.arrays.step_s_C / before_s_C
    is_slow_C = fleet.arrays.device_C == device
    np.testing.assert_allclose(ratio_C[is_slow_C], 2.0, rtol=0.03)
    np.testing.assert_array_equal(ratio_C[~is_slow_C], 1.0)
    assert view.fleet.slowness.by_device()[fleet.devices[device]] == pytest.approx(2.0, 0.03)


@scenario
async def test_a_device_whose_profile_was_measured_again_is_as_fast_as_it_says() -> None:
    """How slow it was beside the old costs is in the new ones; what did not change is kept."""
    rig = make_rig(endpoint_count=2)
    fleet = rig.core.view.fleet
    for device in fleet.latest.devices:
        for _ in range(100):
            fleet.slowness.observe(device, 0.2, 0.1, finished=True)
    endpoints = [endpoint_of_settings(each) for each in rig.app.settings.mesh.endpoints]
    rig.core.view.configure(fleet.catalog, endpoints, {"": PROFILE, "e1": PROFILE.scaled(2.0)})
    slow, fresh = fleet.slowness.by_device().values()
    assert slow == pytest.approx(2.0, 0.03)
    assert fresh == 1.0


@scenario
async def test_settings_that_are_read_again_open_nothing_that_is_closed() -> None:
    """What drains, or is not ready, stays closed, if no monitor is there to say so again."""
    rig = make_rig()
    view = rig.core.view
    partial = SeenEndpoint(endpoint(1).spec, 1.0, frozenset({"small"}), "PARTIAL")
    draining = endpoint(0, 0.0, "DRAINING")
    view.apply(state(draining, partial), rig.clock.monotonic_s())
    endpoints = [endpoint_of_settings(each) for each in rig.app.settings.mesh.endpoints]
    profiles = {"": PROFILE, "e0": PROFILE.scaled(2.0)}
    view.configure(view.fleet.catalog, endpoints, profiles)
    assert look(rig).tolist() == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    await asyncio.sleep(10.0)  # the state is too old: health is left to the own breakers
    assert look(rig).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    view.configure(view.fleet.catalog, endpoints, profiles)
    assert look(rig).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
