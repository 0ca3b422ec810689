"""Counts of how requests ended: exact for reports and status, and as Prometheus metrics.

Invariant: offered = on_time + late + refused + cancelled + failed + under way. Bad input is
counted apart, whoever found it: one that its tier finds bad is offered no more.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from router.seat import Stay
from router.types import Priority, SloKind
from services.common import latency_buckets
from services.common.metrics import Tally
from services.router_inference.job import Job, Outcome, StepDown
from services.router_inference.records.metrics import RouterMetrics

_WAIT_BUCKETS_S = (
    0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0,
    30.0,
)  # fmt: skip
_DECISION_BUCKETS_S = (
    0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01,
)  # fmt: skip
_FINE_S = sorted({*_WAIT_BUCKETS_S, *latency_buckets.BOUNDS_S})
_SHARED_STARTS = [0, *(_FINE_S.index(bound) + 1 for bound in latency_buckets.BOUNDS_S)]
TASK_ENDS = (Outcome.ON_TIME, Outcome.LATE, Outcome.REFUSED, Outcome.FAILED, Outcome.CANCELLED)
"""Ends in the order of the columns of `Accounts.by_task`."""
PRIORITIES = tuple(Priority)
"""Classes in the order of the rows of `Accounts.by_priority`, from high to low."""
REWARD = len(TASK_ENDS)
"""Its column of delivered rewards."""
SMOOTH = REWARD + 1
"""Its column of answers that count by their lateness (`router.smooth`)."""
TOKEN_KINDS = (SloKind.FIRST_TOKEN, SloKind.PER_TOKEN)
"""What deadlines for tokens are for."""
TOKENS = SMOOTH + 1
"""Its first column of requests with such a deadline: of each kind those on time, those that missed,
and the answers by their lateness."""
TOKEN_WIDTH = 3
"""Columns of each kind."""
TIERS = TOKENS + TOKEN_WIDTH * len(TOKEN_KINDS)
"""Its first column of answers by tier."""
NO_TIER = "none"
"""Tier label of requests for which none was chosen."""


_Key = TypeVar("_Key", bound=tuple[object, ...])
_ANSWERED = (Outcome.ON_TIME, Outcome.LATE)
_MISSED = (Outcome.LATE, Outcome.REFUSED, Outcome.FAILED)


def _told(counts: dict[_Key, int]) -> dict[_Key, int]:
    """Returns counts whose keys end with an outcome, with a 0 for every other end.

    A count that is first seen as 5 has not risen, as Prometheus sees it: without the 0 before, a
    first burst of misses would be in no rate, and where nothing is on time no alert would fire.
    """
    others = {cast("_Key", (*key[:-1], end)): 0 for key in counts for end in TASK_ENDS}
    return others | counts


def task_width(tiers: Sequence[str]) -> int:
    """Returns how many columns `Accounts.by_task` has."""
    return TIERS + len(tiers)


@dataclass(frozen=True, slots=True)
class TokenEnds:
    """What became of requests with a deadline for tokens.

    Attributes:
        kind: what it was for.
        on_time: answered with every due token in time.
        missed: late, refused or failed.
        smooth: answers by their lateness.
    """

    kind: SloKind
    on_time: int
    missed: int
    smooth: float


def token_ends(row: Sequence[float]) -> list[TokenEnds]:
    """Returns what a row of `Accounts.by_task` says of deadlines for tokens, kind by kind."""
    found = []
    for k, kind in enumerate(TOKEN_KINDS):
        on_time, missed, smooth = row[TOKENS + TOKEN_WIDTH * k :][:TOKEN_WIDTH]
        if on_time or missed:
            found.append(TokenEnds(kind, round(on_time), round(missed), smooth))
    return found


_FIELDS = {outcome: outcome.value for outcome in Outcome}
"""The field of `Counts` of each outcome: the value of an enumeration's member takes longer."""


@dataclass(slots=True)
class Counts:
    """Requests by how they ended, since the process started.

    Attributes:
        offered: that reached the service, bad input excluded.
        on_time: answered inside the deadline.
        late: answered late or cut off by the deadline.
        refused: refused before any work.
        cancelled: cancelled by the client.
        failed: without an answer for any other reason.
        invalid: bad input.
        delivered_reward_sum: sum of delivered rewards.
    """

    offered: int = 0
    on_time: int = 0
    late: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    invalid: int = 0
    delivered_reward_sum: float = 0.0

    @property
    def ended(self) -> int:
        """Requests that ended."""
        return self.on_time + self.late + self.refused + self.cancelled + self.failed

    def add(self, outcome: Outcome, reward: float) -> None:
        """Counts one end."""
        if outcome is Outcome.INVALID:
            self.offered -= 1
        name = _FIELDS[outcome]
        setattr(self, name, getattr(self, name) + 1)
        self.delivered_reward_sum += reward


class Accounts(Collector):
    """Counts every request once; counters per request become metrics when they are scraped."""

    def __init__(self, metrics: RouterMetrics, registry: CollectorRegistry) -> None:
        """Registers itself with `registry`."""
        self.metrics = metrics
        self.counts = Counts()
        self.routed_count = 0
        """Routed requests whose ticket is open; part of those under way."""
        self.tier_counts: dict[str, Counts] = {}
        self.decision_time = Tally(_DECISION_BUCKETS_S)
        self.call_wait = Tally(_WAIT_BUCKETS_S)
        self._requests: dict[tuple[str, str, Outcome], int] = {}
        self._latencies: dict[tuple[str, str], Tally] = {}
        self._priorities: dict[tuple[Priority, Outcome], int] = {}
        self._rewards: dict[str, float] = {}
        self._smooth: dict[str, float] = {}
        self._of_tokens: dict[tuple[str, SloKind, Outcome], int] = {}
        self._token_smooth: dict[tuple[str, SloKind], float] = {}
        self._step_downs: dict[StepDown, int] = {}
        self._stays: dict[Stay, int] = {}
        self.explorations = collections.Counter[str]()
        """Decisions by what became of exploring; none while the router does not explore."""
        self._reasons: dict[tuple[Outcome, str], int] = {}
        metrics.in_flight.set_function(lambda: float(self.in_flight))
        registry.register(self)

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self.counts.offered - self.counts.ended

    def by_task(self, tasks: Sequence[str], tiers: Sequence[str]) -> NDArray[np.float64]:
        """Returns what became of tasks.

        Returns:
            A row per task: its requests by `TASK_ENDS`, its delivered rewards, its answers by their
            lateness, what became of those with a deadline for tokens, and its requests on time or
            late by tier.
        """
        task_row = {name: k for k, name in enumerate(tasks)}
        tier_column = {name: TIERS + t for t, name in enumerate(tiers)}
        end_column = {outcome: column for column, outcome in enumerate(TASK_ENDS)}
        counts_KW = np.zeros((len(tasks), task_width(tiers)))
        for (task, tier, outcome), count in self._requests.items():
            row = task_row.get(task)
            if row is None:
                continue
            counts_KW[row, end_column[outcome]] += count
            if outcome in _ANSWERED and tier in tier_column:
                counts_KW[row, tier_column[tier]] += count
        for task, reward in self._rewards.items():
            if task in task_row:
                counts_KW[task_row[task], REWARD] = reward
                counts_KW[task_row[task], SMOOTH] = self._smooth.get(task, 0.0)
        token_column = {kind: TOKENS + TOKEN_WIDTH * k for k, kind in enumerate(TOKEN_KINDS)}
        for (task, kind, outcome), count in self._of_tokens.items():
            if task in task_row:
                column = token_column[kind]
                counts_KW[task_row[task], column] += count * (outcome is Outcome.ON_TIME)
                counts_KW[task_row[task], column + 1] += count * (outcome in _MISSED)
        for (task, kind), smooth in self._token_smooth.items():
            if task in task_row:
                counts_KW[task_row[task], token_column[kind] + 2] = smooth
        return counts_KW

    def by_priority(self) -> NDArray[np.float64]:
        """Returns requests by `PRIORITIES` (rows) and `TASK_ENDS` (columns)."""
        counts_PE = np.zeros((len(PRIORITIES), len(TASK_ENDS)))
        for (priority, outcome), count in self._priorities.items():
            counts_PE[PRIORITIES.index(priority), TASK_ENDS.index(outcome)] = count
        return counts_PE

    def latencies(self, tasks: Sequence[str]) -> NDArray[np.float64]:
        """Returns complete answers of tasks by `latency_buckets`, and what never was complete.

        It takes time in proportion to tasks times tiers.

        Returns:
            A row per task; its last entry counts requests on time or late without an answer.
        """
        index = {name: k for k, name in enumerate(tasks)}
        counts_KW = np.zeros((len(tasks), latency_buckets.BUCKET_COUNT + 1))
        for (task, _, outcome), count in self._requests.items():
            if task in index and outcome in _ANSWERED:
                counts_KW[index[task], -1] += count
        for (task, _), tally in self._latencies.items():
            if task in index:
                counts_KW[index[task], :-1] += np.add.reduceat(tally.counts, _SHARED_STARTS)
        counts_KW[:, -1] = np.maximum(0.0, counts_KW[:, -1] - counts_KW[:, :-1].sum(axis=1))
        return counts_KW

    def on_offered(self) -> None:
        """Counts a request that passed the checks."""
        self.counts.offered += 1

    def on_conversation(self, stay: Stay) -> None:
        """Counts what a decision made of a request's conversation."""
        self._stays[stay] = self._stays.get(stay, 0) + 1

    @property
    def conversation_counts(self) -> Mapping[str, int]:
        """Decisions for requests of conversations, by what became of these."""
        return {stay.name.lower(): count for stay, count in self._stays.copy().items()}

    def on_invalid(self, reason: str) -> None:
        """Counts bad input."""
        self.counts.invalid += 1
        self.metrics.invalid.labels(reason=reason).inc()

    def on_end(
        self, job: Job, outcome: Outcome, delivered_reward: float, smooth: float = 0.0
    ) -> None:
        """Counts the end of an offered request.

        Args:
            job: the request.
            outcome: how it ended.
            delivered_reward: what its answer earned.
            smooth: what its answer counts by its lateness.
        """
        self.counts.add(outcome, delivered_reward)
        if outcome is Outcome.INVALID:
            self.metrics.invalid.labels(reason=job.reason).inc()
            return
        tier = job.tier
        if tier:
            counts = self.tier_counts.get(tier)
            if counts is None:
                counts = self.tier_counts[tier] = Counts()
            counts.offered += 1
            counts.add(outcome, delivered_reward)
        task = job.task.name
        key = (task, tier, outcome)
        self._requests[key] = self._requests.get(key, 0) + 1
        stood = (job.request.priority, outcome)
        self._priorities[stood] = self._priorities.get(stood, 0) + 1
        self._rewards[task] = self._rewards.get(task, 0.0) + delivered_reward
        self._smooth[task] = self._smooth.get(task, 0.0) + smooth
        kind = job.request.slo_kind
        if kind is not SloKind.COMPLETE_ANSWER:
            due = (task, kind, outcome)
            self._of_tokens[due] = self._of_tokens.get(due, 0) + 1
            self._token_smooth[task, kind] = self._token_smooth.get((task, kind), 0.0) + smooth
        if job.reason:
            reason = (outcome, job.reason)
            self._reasons[reason] = self._reasons.get(reason, 0) + 1
        if job.step_down is not StepDown.NONE:
            self._step_downs[job.step_down] = self._step_downs.get(job.step_down, 0) + 1
        if job.is_complete:
            tally = self._latencies.get((task, tier))
            if tally is None:
                tally = self._latencies[task, tier] = Tally(_FINE_S)
            tally.observe(job.end_s - job.arrival_s)

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics; called by a scrape, from a thread of its own."""
        requests = CounterMetricFamily(
            "tiercel_requests",
            "Requests by task, tier that answered or was chosen, and how they ended.",
            labels=["task", "tier", "outcome"],
        )
        # Copies, since the loop goes on counting meanwhile.
        ended = self._requests.copy()
        # What is refused has no tier.
        ended = {(task, "", Outcome.REFUSED): 0 for task, _, _ in ended} | ended
        for (task, tier, outcome), count in _told(ended).items():
            requests.add_metric([task, tier or NO_TIER, outcome.value], float(count))
        yield requests
        by_priority = CounterMetricFamily(
            "tiercel_priority_requests",
            "Requests by the priority class they were decided for as, and how they ended.",
            labels=["priority", "outcome"],
        )
        for (priority, outcome), count in _told(self._priorities.copy()).items():
            by_priority.add_metric([priority.label, outcome.value], float(count))
        yield by_priority
        latency = HistogramMetricFamily(
            "tiercel_request_latency_seconds",
            "From arrival to the complete answer, answered requests.",
            labels=["task", "tier"],
        )
        for (task, tier), tally in self._latencies.copy().items():
            latency.add_metric([task, tier or NO_TIER], tally.buckets(_WAIT_BUCKETS_S), tally.total)
        yield latency
        yield HistogramMetricFamily(
            "tiercel_decision_seconds",
            "Time of one decision, observation included.",
            buckets=self.decision_time.buckets(),
            sum_value=self.decision_time.total,
        )
        yield HistogramMetricFamily(
            "tiercel_call_wait_seconds",
            "Time from the start of a call to its handler, of calls that state their time limit.",
            buckets=self.call_wait.buckets(),
            sum_value=self.call_wait.total,
        )
        reward = CounterMetricFamily(
            "tiercel_delivered_reward",
            "Sum of delivered rewards (quality if on time); over requests it is the performance.",
            labels=["task"],
        )
        for task, value in self._rewards.copy().items():
            reward.add_metric([task], value)
        yield reward
        smooth = CounterMetricFamily(
            "tiercel_smooth_answers",
            "Answers, late ones counted exp(-lateness / 0.2 s); per second it is smooth goodput.",
            labels=["task"],
        )
        for task, value in self._smooth.copy().items():
            smooth.add_metric([task], value)
        yield smooth
        yield from self._token_families()
        explorations = CounterMetricFamily(
            "tiercel_exploration_decisions",
            "Decisions of a router that explores, by what became of it.",
            labels=["result"],
        )
        for result, count in self.explorations.copy().items():
            explorations.add_metric([result], float(count))
        yield explorations
        yield from self._reason_families()

    def _token_families(self) -> Iterator[Metric]:
        labels = ["task", "slo_kind"]
        requests = CounterMetricFamily(
            "tiercel_token_deadline_requests",
            "Requests whose deadline is for tokens, by its kind and how they ended.",
            labels=[*labels, "outcome"],
        )
        for (task, kind, outcome), count in _told(self._of_tokens.copy()).items():
            requests.add_metric([task, kind.value, outcome.value], float(count))
        yield requests
        smooth = CounterMetricFamily(
            "tiercel_token_deadline_smooth_answers",
            "Answers with a deadline for tokens, late ones counted exp(-lateness / 0.2 s).",
            labels=labels,
        )
        for (task, kind), value in self._token_smooth.copy().items():
            smooth.add_metric([task, kind.value], value)
        yield smooth

    def _reason_families(self) -> Iterator[Metric]:
        step_downs = CounterMetricFamily(
            "tiercel_step_downs",
            "Answers of a smaller tier than the largest allowed one.",
            labels=["reason"],
        )
        for kind, count in self._step_downs.copy().items():
            step_downs.add_metric([kind.value], float(count))
        yield step_downs
        stays = CounterMetricFamily(
            "tiercel_conversation_decisions",
            "Decisions for requests of conversations, by whether these stayed, or why not.",
            labels=["stay"],
        )
        for stay, count in self.conversation_counts.items():
            stays.add_metric([stay], float(count))
        yield stays
        reasons = self._reasons.copy().items()
        for wanted, name, text in (
            (Outcome.REFUSED, "tiercel_refused_requests", "Requests refused before any work."),
            (Outcome.FAILED, "tiercel_failed_requests", "Requests that could not be answered."),
        ):
            family = CounterMetricFamily(name, text, labels=["reason"])
            for (outcome, reason), count in reasons:
                if outcome is wanted:
                    family.add_metric([reason], float(count))
            yield family
