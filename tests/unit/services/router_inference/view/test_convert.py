"""Messages of the load monitor as a router reads them."""

from __future__ import annotations

import math

import pytest

from services.router_inference.policy.slot import Promoted
from services.router_inference.view.convert import LoadWriter, StateReader, router_load
from services.router_inference.view.seen import SeenState
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.scenario import scenario
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2, system_state_pb2

ENDPOINT = common_pb2.Endpoint(endpoint="e0", tiers=[common_pb2.ServedTier(tier="small")])


def seen_state(message: system_state_pb2.SystemState, router_id: str, epoch: int) -> SeenState:
    """Reads a state as a monitor of the last release sends it."""
    response = load_monitor_service_pb2.WatchSystemStateResponse(state=message)
    return StateReader(router_id, epoch).read(response)


def test_own_reports_are_left_out_of_a_state() -> None:
    """Everybody else's load counts, that of another process of the same name included."""
    message = system_state_pb2.SystemState(version=1)
    for router_id, epoch, count in (("me", 1, 5), ("me", 2, 7), ("other", 1, 3)):
        router = message.routers.add(router_id=router_id, epoch=epoch, arrival_rate_rps=count)
        router.loads.add(
            candidate=common_pb2.Candidate(tier="small", endpoint="e0"), in_flight_count=count
        )
    message.endpoints.add().endpoint.CopyFrom(ENDPOINT)
    seen = seen_state(message, "me", 2)
    assert seen.candidates == (("small", "e0"),)
    assert seen.others_LC[:, 0].tolist() == [8.0, 0.0, 0.0]
    assert seen.own_sequence == 0
    assert seen.other_rate_rps == 8.0


@pytest.mark.parametrize("rate_rps", [math.inf, math.nan, -1.0, 1.7e308])
def test_a_rate_that_is_none_counts_as_none(rate_rps: float) -> None:
    """No state, whoever wrote it, makes a feature infinite."""
    message = system_state_pb2.SystemState(version=1, arrival_rate_long_rps=rate_rps)
    for router_id in ("a", "b"):
        message.routers.add(router_id=router_id, arrival_rate_rps=rate_rps)
    seen = seen_state(message, "me", 1)
    assert (seen.other_rate_rps, seen.rate_long_rps) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("claimed", "expected"), [(0.0, 1.0), (100.0, 1.0), (math.nan, 0.01), (-1.0, 0.01), (0.5, 0.5)]
)
def test_a_claimed_speed_only_slows_down(claimed: float, expected: float) -> None:
    """An endpoint that says it is a hundred times faster is sent no more than its like."""
    message = system_state_pb2.SystemState(version=1)
    message.endpoints.add().endpoint.speed = claimed
    assert seen_state(message, "me", 1).endpoints[0].spec.speed == expected


def test_health_words_become_weights() -> None:
    """DOWN and DRAINING get nothing; not yet probed is left to the own breakers."""
    message = system_state_pb2.SystemState(version=1)
    healths = ("READY", "DOWN", "DRAINING", "UNSPECIFIED")
    for word in healths:
        entry = message.endpoints.add(ramp_weight=0.5)
        entry.health = common_pb2.EndpointHealth.Value(f"ENDPOINT_HEALTH_{word}")
        entry.endpoint.endpoint = word.lower()
        entry.endpoint.tiers.add(tier="small")
    seen = seen_state(message, "me", 2)
    assert [item.weight for item in seen.endpoints] == [0.5, 0.0, 0.0, 1.0]
    assert seen.endpoints[0].spec.models == {"small": "small"}
    assert seen.endpoints[0].spec.speed == 1.0


@scenario
async def test_a_report_says_what_was_done_with_a_promoted_policy() -> None:
    """The trainer reads there whether this router uses it, and why not."""
    rig = make_rig()
    rig.core.slot.promote(Promoted("nonsense", "", b"", b"", 5))
    slot = rig.core.slot
    load = router_load(
        router_id="r1",
        epoch=1,
        sequence=1,
        view=rig.core.view,
        counts=rig.core.counts,
        policy=slot.name,
        policy_version=slot.version,
        activation=slot.activation,
        policy_refusal=slot.refusal,
        loads=LoadWriter(),
        packs=True,
        now_s=rig.clock.monotonic_s(),
        now_ns=rig.clock.wall_ns(),
    )
    told = (load.policy, load.activation, load.policy_refusal)
    assert told == ("static-large", 5, "POLICY_UNKNOWN")
