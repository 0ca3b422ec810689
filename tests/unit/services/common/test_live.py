"""The live view: rates over a short window from counters that only grow."""

from __future__ import annotations

import json
import math

import pytest

from services.common.latency_buckets import BOUNDS_S
from services.common.live import StateTracker, facts_json, tier_order
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


def with_second(state: pb.SystemState, epoch: int, count: int) -> pb.SystemState:
    """The same mesh with a second router, which has answered so many requests since its start."""
    second = state.routers.add(router_id="r2", epoch=epoch)
    second.outcomes.offered_count = second.outcomes.on_time_count = count
    second.outcomes.delivered_reward_sum = count
    return state


def test_a_router_that_is_heard_of_again_brings_no_rate_of_its_whole_life() -> None:
    """What it had counted before is left out; what it counts from then on is not."""
    tracker = StateTracker()
    tracker.push(state_at(100.0, 1000, 1000, 900.0, 500))
    facts = tracker.push(with_second(state_at(101.0, 1010, 1010, 909.0, 505), 1, 1_000_000))
    assert facts.rate_rps == pytest.approx(10.0)
    assert facts.performance == pytest.approx(0.9)
    facts = tracker.push(with_second(state_at(102.0, 1020, 1020, 918.0, 510), 1, 1_000_030))
    assert facts.rate_rps == pytest.approx((20 + 30) / 2)


def test_a_router_that_starts_anew_does_not_hide_the_others() -> None:
    """Its counts begin at zero again, and the others' go on."""
    tracker = StateTracker()
    tracker.push(with_second(state_at(100.0, 1000, 1000, 900.0, 500), 1, 50_000))
    facts = tracker.push(with_second(state_at(101.0, 1010, 1010, 909.0, 505), 2, 5))
    assert facts.rate_rps == pytest.approx(10.0)
    assert facts.on_time_share == 1.0
    gone = tracker.push(state_at(102.0, 1020, 1020, 918.0, 510))
    assert gone.rate_rps == pytest.approx(10.0)


def test_tiers_come_in_the_order_in_which_endpoints_list_them() -> None:
    """That is the settings' order, lowest quality first."""
    assert tier_order(state_at(100.0, 0, 0, 0.0, 0)) == ("small", "large")


def with_task(answers: int, cut_off: int) -> pb.SystemState:
    """A state of two routers that tell the same of one task, its answers after 128 ms."""
    state = state_at(100.0, 0, 0, 0.0, 0)
    latency = pb.TaskLatency(
        task="sort",
        slo_kind=common_pb2.SLO_KIND_FIRST_TOKEN,
        answer_counts=[answers],
        first_bucket=BOUNDS_S.index(0.128),
        cut_off_count=cut_off,
    )
    latency.default_deadline.FromMilliseconds(200)
    attainment = pb.TaskAttainment(
        task="sort",
        target=0.99,
        settings_target=0.99,
        on_time_count=answers,
        missed_count=cut_off,
        delivered_reward_sum=0.5 * answers,
        largest_quality=0.9,
    )
    for router, pressure in ((state.routers[0], 0.5), (state.routers.add(router_id="r2"), 1.5)):
        router.target_pressure = pressure
        router.task_latencies.append(latency)
        router.task_attainments.append(attainment)
    return state


def test_latencies_are_of_all_routers_and_count_what_was_cut_off() -> None:
    """Two of a hundred were cut off: the 99th percentile lies beyond every answer."""
    facts = StateTracker().push(with_task(98, 2))
    latency = facts.latencies["sort"]
    assert (latency.deadline_s, latency.is_first_token) == (0.2, True)
    assert latency.p50_s == pytest.approx(0.125, rel=0.05)
    assert latency.p99_s == math.inf
    assert (facts.pressure, facts.wall_s) == (1.5, 100.0)
    assert StateTracker().push(with_task(0, 0)).latencies["sort"].p50_s is None


def test_json_has_pairs_as_rows_and_tasks_with_their_latency() -> None:
    """JSON has no keys of two parts and no infinity."""
    facts = facts_json(StateTracker().push(with_task(98, 2)))
    shown = json.loads(json.dumps(facts, allow_nan=False))
    assert shown["queue_depth"] == [{"tier": "large", "endpoint": "e", "count": 2}]
    assert shown["in_flight"] == [{"tier": "large", "endpoint": "e", "count": 3}]
    (task,) = shown["tasks"]
    assert (task["task"], task["target"], task["attained"]) == ("sort", 0.99, 0.98)
    assert (task["deadline_s"], task["p99_s"]) == (0.2, None)
    assert task["given_up"] == pytest.approx(0.9 - 0.5 * 0.98)
    old = with_task(98, 2)
    for router in old.routers:
        del router.task_latencies[:]
    assert facts_json(StateTracker().push(old))["tasks"][0]["deadline_s"] is None


def test_goodput_of_deadlines_for_tokens_is_told_where_there_are_any() -> None:
    """A row per task and kind, in JSON too; none where all deadlines are for complete answers."""
    assert StateTracker().push(with_task(98, 2)).tokens == []
    tracker, facts = StateTracker(), None
    for at_s, on_time in ((100.0, 7), (104.0, 15)):
        state = state_at(at_s, 0, 0, 0.0, 0)
        task = state.routers[0].task_outcomes.add(task="chat")
        task.token_outcomes.add(
            slo_kind=common_pb2.SLO_KIND_PER_TOKEN,
            on_time_count=on_time,
            smooth_answer_sum=on_time,
        )
        facts = tracker.push(state)
    assert facts is not None
    (row,) = facts_json(facts)["tokens"]
    assert (row["task"], row["slo_kind"], row["on_time_count"]) == ("chat", "per_token", 8)
    assert (row["goodput_rps"], row["smooth_goodput_rps"], row["attained"]) == (2.0, 2.0, 1.0)


@pytest.mark.parametrize("later_s", [3_600.0, -3_600.0])
def test_what_was_seen_long_ago_is_no_beginning_of_a_rate(later_s: float) -> None:
    """Nobody looked for an hour, or the clock was set back: the window starts anew."""
    tracker = StateTracker()
    tracker.push(state_at(100_000.0, 10, 10, 9.0, 10))
    facts = tracker.push(state_at(100_000.0 + later_s, 1_000, 1_000, 900.0, 1_000))
    assert (facts.rate_rps, facts.on_time_share) == (0.0, None)
