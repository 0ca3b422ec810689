"""What the mesh does now, from the load monitor's stream of system states."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from services.common.times import seconds_of
from services.local.task_targets import TaskTarget, task_targets
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as pb

WINDOW_S = 2.0
"""Rates and shares are over this much time."""


@dataclasses.dataclass(frozen=True, slots=True)
class LiveFacts:
    """Facts over the last moments.

    Attributes:
        rate_rps: Offered requests per second.
        on_time_share: Share of ended requests that were on time; None if none ended.
        quality: Mean quality of requests on time; None if none was.
        performance: Mean delivered reward per ended request; None if none ended.
        refused_rps: Refused requests per second.
        mix: Share of each tier among requests on time or late, by name.
        in_flight: Dispatched and unfinished requests by (tier, endpoint).
        queue_depth: Waiting in Triton by (tier, endpoint).
        policies: Router id to policy and version.
        health: Endpoint to health and its reason.
        tasks: How each task's target stands, over about a minute.
    """

    rate_rps: float
    on_time_share: float | None
    quality: float | None
    performance: float | None
    refused_rps: float
    mix: Mapping[str, float]
    in_flight: Mapping[tuple[str, str], int]
    queue_depth: Mapping[tuple[str, str], int]
    policies: Mapping[str, str]
    health: Mapping[str, str]
    tasks: Sequence[TaskTarget] = ()


Totals = tuple[float, collections.Counter[str], collections.Counter[str]]


class StateTracker:
    """Turns a stream of system states, whose counters only grow, into rates over a short window."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        """Starts without history."""
        self._window_s = window_s
        self._history: collections.deque[Totals] = collections.deque()

    def push(self, state: pb.SystemState) -> LiveFacts:
        """Takes the next state in and says what it means together with the last ones."""
        now_s = seconds_of(state.publish_time)
        totals, tiers = _totals(state)
        self._history.append((now_s, totals, tiers))
        while len(self._history) > 2 and now_s - self._history[1][0] >= self._window_s:
            self._history.popleft()
        then_s, before, tiers_before = self._history[0]
        # A router that left or restarted makes sums fall; a window with it counts as empty.
        delta = {key: max(0.0, totals[key] - before[key]) for key in totals}
        served = {tier: max(0, tiers[tier] - tiers_before[tier]) for tier in tiers}
        return _facts(state, now_s - then_s, delta, served)


def _totals(state: pb.SystemState) -> tuple[collections.Counter[str], collections.Counter[str]]:
    totals: collections.Counter[str] = collections.Counter()
    tiers: collections.Counter[str] = collections.Counter()
    for router in state.routers:
        counts = router.outcomes
        totals["offered"] += counts.offered_count
        totals["on_time"] += counts.on_time_count
        totals["late"] += counts.late_count
        totals["refused"] += counts.refused_count
        totals["failed"] += counts.failed_count
        totals["reward"] += counts.delivered_reward_sum  # type: ignore[assignment]
        for each in router.tier_outcomes:
            tiers[each.tier] += each.outcomes.on_time_count + each.outcomes.late_count
    return totals, tiers


def _facts(
    state: pb.SystemState, span_s: float, delta: Mapping[str, float], served: Mapping[str, int]
) -> LiveFacts:
    per_s = 1.0 / span_s if span_s > 0 else 0.0
    get = delta.get
    ended = sum(get(name, 0.0) for name in ("on_time", "late", "refused", "failed"))
    on_time, reward = get("on_time", 0.0), get("reward", 0.0)
    total = sum(served.values())
    in_flight: collections.Counter[tuple[str, str]] = collections.Counter()
    for router in state.routers:
        for load in router.loads:
            in_flight[(load.candidate.tier, load.candidate.endpoint)] += load.in_flight_count
    return LiveFacts(
        rate_rps=get("offered", 0.0) * per_s,
        on_time_share=on_time / ended if ended else None,
        quality=reward / on_time if on_time else None,
        performance=reward / ended if ended else None,
        refused_rps=get("refused", 0.0) * per_s,
        mix={tier: count / total for tier, count in served.items()} if total else {},
        in_flight=in_flight,
        queue_depth={
            (gauge.tier, each.endpoint.endpoint): gauge.queue_depth
            for each in state.endpoints
            for gauge in each.gauges
        },
        policies={r.router_id: f"{r.policy} {r.policy_version}".strip() for r in state.routers},
        health={each.endpoint.endpoint: _health(each) for each in state.endpoints},
        tasks=task_targets(state),
    )


def _health(state: pb.EndpointState) -> str:
    name = common_pb2.EndpointHealth.Name(state.health).removeprefix("ENDPOINT_HEALTH_").lower()
    return f"{name}: {state.reason}" if state.reason else name


def tier_order(state: pb.SystemState) -> tuple[str, ...]:
    """Tiers in the order in which endpoints list them, which is the settings' order."""
    names = [tier.tier for each in state.endpoints for tier in each.endpoint.tiers]
    return tuple(dict.fromkeys(names))
