"""The live view: rates over a short window from counters that only grow."""

from __future__ import annotations

import pytest

from services.local.live import StateTracker, tier_order
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as pb


def state_at(
    time_s: float, offered: int, on_time: int, reward: float, large: int
) -> pb.SystemState:
    """A mesh with one router and one endpoint."""
    router = pb.RouterLoad(
        router_id="r",
        policy="price",
        policy_version="1",
        outcomes=pb.OutcomeCounts(
            offered_count=offered,
            on_time_count=on_time,
            late_count=offered - on_time,
            delivered_reward_sum=reward,
        ),
        tier_outcomes=[
            pb.TierOutcomeCounts(tier="large", outcomes=pb.OutcomeCounts(on_time_count=large)),
            pb.TierOutcomeCounts(
                tier="small", outcomes=pb.OutcomeCounts(on_time_count=on_time - large)
            ),
        ],
        loads=[
            pb.CandidateLoad(
                candidate=common_pb2.Candidate(tier="large", endpoint="e"), in_flight_count=3
            )
        ],
    )
    endpoint = pb.EndpointState(
        endpoint=common_pb2.Endpoint(
            endpoint="e",
            tiers=[common_pb2.ServedTier(tier="small"), common_pb2.ServedTier(tier="large")],
        ),
        health=common_pb2.ENDPOINT_HEALTH_READY,
        gauges=[pb.TierGauges(tier="large", queue_depth=2)],
    )
    state = pb.SystemState(routers=[router], endpoints=[endpoint])
    state.publish_time.FromNanoseconds(int(time_s * 1e9))
    return state


def test_rates_are_differences_over_the_window() -> None:
    """Counts before the window do not matter."""
    tracker = StateTracker(window_s=2.0)
    tracker.push(state_at(100.0, 1000, 1000, 900.0, 500))
    tracker.push(state_at(101.0, 1010, 1010, 909.0, 505))
    facts = tracker.push(state_at(102.0, 1030, 1025, 920.0, 510))
    assert facts.rate_rps == pytest.approx(15.0)
    assert facts.on_time_share == pytest.approx(25 / 30)
    assert facts.quality == pytest.approx(20 / 25)
    assert facts.performance == pytest.approx(20 / 30)
    assert facts.mix["large"] == pytest.approx(10 / 25)
    assert facts.in_flight == {("large", "e"): 3}
    assert facts.queue_depth == {("large", "e"): 2}
    later = tracker.push(state_at(104.0, 1030, 1025, 920.0, 510))
    assert later.rate_rps == 0.0
    assert later.on_time_share is None


def test_a_router_that_restarts_does_not_make_rates_negative() -> None:
    """Counters that fall count as nothing."""
    tracker = StateTracker()
    tracker.push(state_at(100.0, 1000, 1000, 900.0, 500))
    facts = tracker.push(state_at(101.0, 5, 5, 5.0, 5))
    assert facts.rate_rps == 0.0
    assert facts.mix == {}


def test_tiers_come_in_the_order_in_which_endpoints_list_them() -> None:
    """That is the settings' order, lowest quality first."""
    assert tier_order(state_at(100.0, 0, 0, 0.0, 0)) == ("small", "large")
