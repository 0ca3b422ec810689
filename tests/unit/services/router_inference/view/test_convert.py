"""Messages of the load monitor as a router reads them."""

from __future__ import annotations

from services.router_inference.view.convert import seen_state
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2


def test_own_reports_are_left_out_of_a_state() -> None:
    """Everybody else's load counts, that of another process of the same name included."""
    message = system_state_pb2.SystemState(version=1)
    for router_id, epoch, count in (("me", 1, 5), ("me", 2, 7), ("other", 1, 3)):
        router = message.routers.add(router_id=router_id, epoch=epoch, arrival_rate_rps=count)
        router.loads.add(
            candidate=common_pb2.Candidate(tier="small", endpoint="e0"), in_flight_count=count
        )
    seen = seen_state(message, "me", 2)
    assert seen.other_totals["small", "e0"][0] == 8.0
    assert seen.other_rate_rps == 8.0


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
