"""What the router sees: own load at once, others' from the state, nothing counted twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from router.fleet import EndpointSpec
from services.router_inference.view.convert_state import seen_state
from services.router_inference.view.view import SeenEndpoint, SeenState
from tests.unit.services.router_inference.parts import Rig, make_rig
from tests.unit.services.router_inference.path.test_dispatch import scenario
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2

ALL = {"small": "small", "medium": "medium", "large": "large"}


def endpoint(index: int, weight: float = 1.0, reason: str = "") -> SeenEndpoint:
    """A ready endpoint as the monitor sees it."""
    spec = EndpointSpec(f"e{index}", f"127.0.0.1:{9000 + index}", f"e{index}", ALL)
    return SeenEndpoint(spec, weight, frozenset(ALL), reason)


def state(*endpoints: SeenEndpoint, version: int = 1, topology: int = 1) -> SeenState:
    """A state with some load of others."""
    return SeenState(version, topology, endpoints, {("small", "e0"): (3.0, 30.0, 24.0)}, 20.0, 5.0)


def look(rig: Rig) -> NDArray[np.float64]:
    """Returns the availabilities as of now."""
    return rig.core.view.current_fleet(rig.clock.monotonic_s()).arrays.availability_C


@scenario
async def test_load_is_own_plus_others() -> None:
    """The ledger's requests add to those of the state."""
    rig = make_rig()
    view = rig.core.view
    view.ledger.dispatch(1, ("small", "e0"), 10.0, 8.0)
    view.apply(state(endpoint(0)), rig.clock.monotonic_s())
    assert view.load().in_flight_C.tolist() == [4.0, 0.0, 0.0]
    assert view.load().remaining_output_tokens_C.tolist() == [32.0, 0.0, 0.0]
    assert view.other_in_flight().tolist() == [3.0, 0.0, 0.0]


@scenario
async def test_own_part_of_load_and_traffic_is_told_apart() -> None:
    """Beside others, the own load and share are known; alone, everything is the router's own."""
    rig = make_rig()
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    view.ledger.dispatch(1, ("small", "e0"), 10.0, 8.0)
    for i in range(10):
        view.on_arrival(now_s + 0.01 * i, 10.0)
    now_s += 0.1
    assert view.own_load(view.load()) is None
    assert view.signals(now_s).own_share == 1.0
    own_long = view.signals(now_s).rate_long_rps
    others = state(endpoint(0))
    view.apply(replace(others, rate_long_rps=4.0 * own_long), now_s)
    own = view.own_load(view.load())
    assert own is not None
    assert own.in_flight_C.tolist() == [1.0, 0.0, 0.0]
    signals = view.signals(now_s)
    assert signals.own_share == pytest.approx(0.25)
    assert signals.own_rate_rps == pytest.approx(signals.rate_short_rps - 20.0)


def test_own_reports_are_left_out_of_a_state_whatever_their_epoch() -> None:
    """The state of a mesh of two routers holds, for one of them, only the other one's load."""
    message = system_state_pb2.SystemState(version=1)
    for router_id, epoch, count in (("me", 1, 5), ("me", 2, 7), ("other", 1, 3)):
        router = message.routers.add(router_id=router_id, epoch=epoch, arrival_rate_rps=count)
        router.loads.add(
            candidate=common_pb2.Candidate(tier="small", endpoint="e0"), in_flight_count=count
        )
    seen = seen_state(message, "me")
    assert seen.other_totals["small", "e0"][0] == 3.0
    assert seen.other_rate_rps == 3.0


@scenario
async def test_endpoints_come_and_go_with_the_state() -> None:
    """The fleet follows the state's endpoint list; requests on an endpoint that left do no harm."""
    rig = make_rig()
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    view.apply(state(endpoint(0), endpoint(1), topology=1), now_s)
    assert view.candidates == tuple((t, f"e{i}") for i in range(2) for t in ALL)
    view.ledger.dispatch(1, ("small", "e0"), 10.0, 8.0)
    view.apply(state(endpoint(1), version=2, topology=2), now_s)
    assert view.candidates == tuple((tier, "e1") for tier in ALL)
    assert not view.load().in_flight_C.any()
    view.ledger.finish(1)
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
    assert rig.core.view.unusable_reason(4, rig.clock.monotonic_s()) == "PARTIAL"


@scenario
async def test_a_stale_state_is_not_used() -> None:
    """Too old: own ledger alone, health forgotten (but not a drain), no age pretended."""
    rig = make_rig(state_max_age_s=2.0)
    view = rig.core.view
    view.apply(
        state(endpoint(0, 0.0, "DOWN"), endpoint(1, 0.0, "DRAINING")), rig.clock.monotonic_s()
    )
    assert look(rig).tolist() == [0.0] * 6
    assert view.signals(rig.clock.monotonic_s()).rate_short_rps == pytest.approx(20.0)
    await asyncio.sleep(2.1)
    assert look(rig).tolist() == [1.0] * 3 + [0.0] * 3
    assert not view.load().in_flight_C.any()
    assert view.is_alone
    signals = view.signals(rig.clock.monotonic_s())
    assert (signals.rate_short_rps, signals.state_age_s) == (0.0, 0.0)
    view.apply(state(endpoint(0)), rig.clock.monotonic_s())
    assert not view.is_alone


@scenario
async def test_an_endpoint_this_router_cannot_use_is_named() -> None:
    """A profile or tier nobody knows here is left out and shown, not fatal."""
    rig = make_rig()
    odd = SeenEndpoint(
        EndpointSpec("odd", "127.0.0.1:9100", "odd", ALL, profile="nowhere"),
        1.0, frozenset(ALL), "",
    )  # fmt: skip
    rig.core.view.apply(state(endpoint(0), odd), rig.clock.monotonic_s())
    assert rig.core.view.unknown_endpoints == ("odd",)
    assert "UNKNOWN_ENDPOINTS" in rig.core.status.read().degraded_reasons


def test_health_words_become_weights() -> None:
    """DOWN and DRAINING get nothing; not yet probed is left to the own breakers."""
    message = system_state_pb2.SystemState(version=1)
    healths = ("READY", "DOWN", "DRAINING", "UNSPECIFIED")
    for word in healths:
        entry = message.endpoints.add(ramp_weight=0.5)
        entry.health = common_pb2.EndpointHealth.Value(f"ENDPOINT_HEALTH_{word}")
        entry.endpoint.endpoint = word.lower()
        entry.endpoint.tiers.add(tier="small")
    seen = seen_state(message, "me")
    assert [item.weight for item in seen.endpoints] == [0.5, 0.0, 0.0, 1.0]
    assert seen.endpoints[0].spec.models == {"small": "small"}
    assert seen.endpoints[0].spec.speed == 1.0


@scenario
async def test_a_slow_device_stretches_its_predictions_and_no_others() -> None:
    """Answers at twice their prediction double the times of that device and of no other."""
    rig = make_rig()
    view = rig.core.view
    before = view.current_fleet(rig.clock.monotonic_s())
    row = before.row["large", "e0"]
    for _ in range(300):
        fleet = view.current_fleet(rig.clock.monotonic_s())
        # The prediction follows the stretched fleet, as a policy's does.
        predicted_s = 0.1 * fleet.slowness_D[fleet.arrays.device_C[row]]
        view.on_end(row, fleet, predicted_s, 0.2, finished=True)
        await asyncio.sleep(0.05)
    after = view.current_fleet(rig.clock.monotonic_s())
    ratio_C = after.arrays.step_s_C / before.arrays.step_s_C
    is_slow_C = before.arrays.device_C == before.arrays.device_C[row]
    np.testing.assert_allclose(ratio_C[is_slow_C], 2.0, rtol=0.03)
    np.testing.assert_array_equal(ratio_C[~is_slow_C], 1.0)
    assert view.slowness()[after.devices[int(after.arrays.device_C[row])]] == pytest.approx(
        2.0, 0.03
    )


@scenario
async def test_answers_slower_than_predicted_reach_the_signals() -> None:
    """What ends late beside its prediction is in the next decision's signals."""
    rig = make_rig()
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    assert view.signals(now_s, 0.4).slowdown == 1.0
    for k in range(100):
        view.on_compared(now_s + 0.001 * k, 0.4, 0.13, 0.1, finished=True)
    assert view.signals(now_s + 0.1).slowdown == pytest.approx(1.19, abs=0.03)
    view.apply(state(endpoint(0)), now_s + 0.1)
    assert view.signals(now_s + 0.1).slowdown == view.latency_slowdown(now_s + 0.1)
