"""System states in, traffic reports out."""

from __future__ import annotations

from dataclasses import replace

from services.common.convert import endpoint_of_message
from services.common.times import timestamp_of
from services.router_inference.records.accounts import Counts
from services.router_inference.records.router_counts import RouterCounts
from services.router_inference.view.seen import REASON_DRAINING, SeenEndpoint, SeenState
from services.router_inference.view.view import View
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2

# What a mesh of the most routers could claim.
_MOST_MESH_RPS = 1e15


def seen_state(message: system_state_pb2.SystemState, router_id: str, epoch: int) -> SeenState:
    """Reads a system state, leaving out what this process itself reported.

    An entry of its name and another epoch is another process's load: one that was there first, or
    an earlier one of this router, whose entry the first own report replaces.
    """
    totals: dict[tuple[str, str], tuple[float, float, float]] = {}
    other_rate_rps = 0.0
    for router in message.routers:
        if router.router_id == router_id and router.epoch == epoch:
            continue
        other_rate_rps += _rate(router.arrival_rate_rps)
        for load in router.loads:
            key = (load.candidate.tier, load.candidate.endpoint)
            before = totals.get(key, (0.0, 0.0, 0.0))
            totals[key] = (
                before[0] + load.in_flight_count,
                before[1] + load.waiting_prompt_token_count,
                before[2] + load.remaining_output_token_count,
            )
    return SeenState(
        topology_version=message.topology_version,
        endpoints=tuple(_endpoint(state) for state in message.endpoints),
        other_totals=totals,
        other_rate_rps=other_rate_rps,
        rate_long_rps=_rate(message.arrival_rate_long_rps),
    )


def _rate(rate_rps: float) -> float:
    """Returns a rate that can be added and divided by, 0 for what is none."""
    return rate_rps if 0.0 <= rate_rps <= _MOST_MESH_RPS else 0.0


def _endpoint(state: system_state_pb2.EndpointState) -> SeenEndpoint:
    spec = endpoint_of_message(state.endpoint)
    # Rounded, so that a drifting estimate does not rebuild the fleet ten times a second.
    # A claim never makes a device count as faster than its profile: answers tell that.
    spec = replace(spec, speed=min(1.0, max(0.01, round(spec.speed, 2))))
    health = state.health
    weight, reason = state.ramp_weight, state.reason
    ready = frozenset(spec.models)
    if health == common_pb2.ENDPOINT_HEALTH_UNSPECIFIED:
        # A monitor that has just started has not probed yet; until it has, the own breakers decide.
        weight = 1.0
    elif health == common_pb2.ENDPOINT_HEALTH_PARTIAL:
        ready = frozenset(gauge.tier for gauge in state.gauges if gauge.ready)
    elif health == common_pb2.ENDPOINT_HEALTH_DOWN:
        weight, reason = 0.0, reason or "DOWN"
    elif health == common_pb2.ENDPOINT_HEALTH_DRAINING:
        weight, reason = 0.0, REASON_DRAINING
    return SeenEndpoint(spec, min(1.0, max(0.0, weight)), ready, reason)


def router_load(
    *,
    router_id: str,
    epoch: int,
    sequence: int,
    view: View,
    counts: RouterCounts,
    policy: str,
    policy_version: str,
    activation: int,
    policy_refusal: str,
    now_s: float,
    now_ns: int,
) -> system_state_pb2.RouterLoad:
    """Returns what this router reports of itself."""
    whole, by_tier = counts.read()
    message = system_state_pb2.RouterLoad(
        router_id=router_id,
        epoch=epoch,
        sequence=sequence,
        report_time=timestamp_of(now_ns),
        arrival_rate_rps=view.traffic.own_rate_rps(now_s),
        policy=policy,
        policy_version=policy_version,
        activation=activation,
        policy_refusal=policy_refusal,
        outcomes=_counts(whole),
    )
    for (tier, endpoint), (in_flight, prompt, output) in view.load.totals().items():
        message.loads.add(
            candidate=common_pb2.Candidate(tier=tier, endpoint=endpoint),
            in_flight_count=round(in_flight),
            waiting_prompt_token_count=round(prompt),
            remaining_output_token_count=round(output),
        )
    for tier, each in by_tier.items():
        message.tier_outcomes.add(tier=tier, outcomes=_counts(each))
    return message


def _counts(counts: Counts) -> system_state_pb2.OutcomeCounts:
    return system_state_pb2.OutcomeCounts(
        offered_count=counts.offered,
        on_time_count=counts.on_time,
        late_count=counts.late,
        refused_count=counts.refused,
        cancelled_count=counts.cancelled,
        failed_count=counts.failed,
        delivered_reward_sum=counts.delivered_reward_sum,
        invalid_count=counts.invalid,
    )
