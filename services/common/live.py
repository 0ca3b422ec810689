"""What the mesh does now, from the load monitor's stream of system states."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from services.common.latency_buckets import BUCKET_COUNT, quantile_s
from services.common.profile_facts import ProfileFacts, profile_facts, profile_json
from services.common.task_targets import TaskTarget, target_facts, task_targets
from services.common.times import seconds_of
from services.common.token_goodput import TokenGoodput, TokenWindow, token_goodput_json
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as pb

WINDOW_S = 2.0
"""Rates and shares are over this much time; those of single tasks over about a minute."""
_OLDEST_S = 30.0
_ENDS = ("on_time", "late", "refused", "failed")


@dataclasses.dataclass(frozen=True, slots=True)
class TaskLatency:
    """When one task's answers came over about a minute, beside their deadline.

    A request that was cut off counts as longer than every answer.

    Attributes:
        deadline_s: Deadline of requests that bring none.
        is_first_token: Whether that is the deadline of the first token, after which each one may
            have a due time of its own; not of the whole answer.
        p50_s: Median time to the complete answer; None if there was none, infinite if it lies
            among what was cut off.
        p99_s: 99th percentile of the same.
    """

    deadline_s: float
    is_first_token: bool
    p50_s: float | None
    p99_s: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class LiveFacts:
    """Facts over the last moments.

    Attributes:
        rate_rps: Offered requests per second.
        on_time_share: Share of ended requests that were on time; None if none ended.
        quality: Mean quality of requests on time; None if none was.
        performance: Mean delivered reward per ended request; None if none ended.
        ended_rps: Requests that ended per second, by how: on_time, late, refused, failed.
        mix: Share of each tier among requests on time or late, by name.
        in_flight: Dispatched and unfinished requests by (tier, endpoint).
        queue_depth: Waiting in Triton by (tier, endpoint).
        policies: Router id to policy and version.
        health: Endpoint to health and its reason.
        tasks: How each task's target stands, over about a minute.
        latencies: When the answers of a task came, by its name.
        pressure: Highest pressure by which a router holds targets; 0 = no task misses its target.
        wall_s: When the state was published, seconds since 1970.
        profiles: How the latency profiles of the endpoints stand.
        tokens: How requests fare whose deadline is for tokens, over about a minute; empty if there
            are none.
    """

    rate_rps: float
    on_time_share: float | None
    quality: float | None
    performance: float | None
    ended_rps: Mapping[str, float]
    mix: Mapping[str, float]
    in_flight: Mapping[tuple[str, str], int]
    queue_depth: Mapping[tuple[str, str], int]
    policies: Mapping[str, str]
    health: Mapping[str, str]
    tasks: Sequence[TaskTarget]
    latencies: Mapping[str, TaskLatency]
    pressure: float
    wall_s: float
    profiles: Sequence[ProfileFacts] = ()
    tokens: Sequence[TokenGoodput] = ()


Process = tuple[str, int]
"""A router and its epoch."""
_Counts = tuple[collections.Counter[str], collections.Counter[str]]
"""Requests by how they ended, with what they earned, and answers by tier, of a router."""


class StateTracker:
    """Turns a stream of system states, whose counters only grow, into rates over a short window.

    What a router had counted before it was first seen is left out. A router that starts anew is
    another one.
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        """Starts without history."""
        self._window_s = window_s
        self._history: collections.deque[tuple[float, dict[Process, _Counts]]] = collections.deque()
        self._tokens = TokenWindow()

    def push(self, state: pb.SystemState) -> LiveFacts:
        """Takes the next state in and says what it means together with the last ones."""
        now_s = seconds_of(state.publish_time)
        # The first report that a monitor hears of a router may not tell yet.
        told = (each for each in state.routers if each.HasField("outcomes"))
        routers = {(each.router_id, each.epoch): _counts(each) for each in told}
        self._history.append((now_s, routers))
        # What was seen long ago, or before the clock was set back, is no beginning of a rate.
        while not 0.0 <= now_s - self._history[0][0] <= max(_OLDEST_S, self._window_s):
            self._history.popleft()
        while len(self._history) > 2 and now_s - self._history[1][0] >= self._window_s:
            self._history.popleft()
        delta: collections.Counter[str] = collections.Counter()
        served: collections.Counter[str] = collections.Counter()
        for process, counts in routers.items():
            before = next(seen[process] for _, seen in self._history if process in seen)
            for grown, now, then in zip((delta, served), counts, before, strict=True):
                # Counts fall where a killed worker's last ones are gone.
                grown.update({key: max(0, now[key] - then[key]) for key in now})
        facts = _facts(state, now_s - self._history[0][0], delta, served)
        return dataclasses.replace(facts, tokens=self._tokens.push(state, now_s))


def _counts(router: pb.RouterLoad) -> _Counts:
    counts = router.outcomes
    totals: collections.Counter[str] = collections.Counter(
        offered=counts.offered_count,
        on_time=counts.on_time_count,
        late=counts.late_count,
        refused=counts.refused_count,
        failed=counts.failed_count,
    )
    totals["reward"] = counts.delivered_reward_sum  # type: ignore[assignment]
    tiers: collections.Counter[str] = collections.Counter()
    for each in router.tier_outcomes:
        tiers[each.tier] += each.outcomes.on_time_count + each.outcomes.late_count
    return totals, tiers


def _facts(
    state: pb.SystemState, span_s: float, delta: Mapping[str, float], served: Mapping[str, int]
) -> LiveFacts:
    per_s = 1.0 / span_s if span_s > 0 else 0.0
    get = delta.get
    ended = sum(get(name, 0.0) for name in _ENDS)
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
        ended_rps={name: get(name, 0.0) * per_s for name in _ENDS},
        mix={tier: count / total for tier, count in served.items()} if total else {},
        in_flight=in_flight,
        queue_depth={
            (gauge.tier, each.endpoint.endpoint): gauge.queue_depth
            for each in state.endpoints
            for gauge in each.gauges
            if gauge.HasField("queue_depth")
        },
        policies={r.router_id: f"{r.policy} {r.policy_version}".strip() for r in state.routers},
        health={each.endpoint.endpoint: _health(each) for each in state.endpoints},
        tasks=task_targets(state),
        latencies=_latencies(state),
        profiles=profile_facts(each for router in state.routers for each in router.profiles),
        pressure=max((router.target_pressure for router in state.routers), default=0.0),
        wall_s=seconds_of(state.publish_time),
    )


def _latencies(state: pb.SystemState) -> dict[str, TaskLatency]:
    told: dict[str, list[pb.TaskLatency]] = {}
    for router in state.routers:
        for task in router.task_latencies:
            told.setdefault(task.task, []).append(task)
    found = {}
    for name, tasks in told.items():
        answers = np.zeros(BUCKET_COUNT)
        for task in tasks:
            counts = np.array(task.answer_counts, dtype=np.float64)
            answers[task.first_bucket : task.first_bucket + len(counts)] += counts
        cut_off = sum(task.cut_off_count for task in tasks)
        found[name] = TaskLatency(
            deadline_s=seconds_of(tasks[0].default_deadline),
            is_first_token=tasks[0].slo_kind > common_pb2.SLO_KIND_COMPLETE_ANSWER,
            p50_s=quantile_s(answers.tolist(), cut_off, 0.5),
            p99_s=quantile_s(answers.tolist(), cut_off, 0.99),
        )
    return found


def facts_json(facts: LiveFacts) -> dict[str, Any]:
    """The facts for machines: pairs of tier and endpoint as rows, each task with its latency.

    A latency is null where there is none, and where it lies among what was cut off: the share in
    time tells the two apart.
    """
    fields = dataclasses.asdict(dataclasses.replace(facts, tasks=(), profiles=(), tokens=()))
    fields["profiles"] = [profile_json(each) for each in facts.profiles]
    fields["tokens"] = [token_goodput_json(each) for each in facts.tokens]
    for name in ("in_flight", "queue_depth"):
        rows = getattr(facts, name).items()
        fields[name] = [
            {"tier": tier, "endpoint": endpoint, "count": count} for (tier, endpoint), count in rows
        ]
    latencies = fields.pop("latencies")
    for row in latencies.values():
        for name in ("p50_s", "p99_s"):
            if row[name] is not None and math.isinf(row[name]):
                row[name] = None
    none = dict.fromkeys(field.name for field in dataclasses.fields(TaskLatency))
    fields["tasks"] = [target_facts(each) | latencies.get(each.task, none) for each in facts.tasks]
    return fields


def _health(state: pb.EndpointState) -> str:
    name = common_pb2.EndpointHealth.Name(state.health).removeprefix("ENDPOINT_HEALTH_").lower()
    return f"{name}: {state.reason}" if state.reason else name


def tier_order(state: pb.SystemState) -> tuple[str, ...]:
    """Tiers in the order in which endpoints list them, which is the settings' order."""
    names = [tier.tier for each in state.endpoints for tier in each.endpoint.tiers]
    return tuple(dict.fromkeys(names))
