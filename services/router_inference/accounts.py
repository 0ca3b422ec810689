"""Counts of how requests ended: exact for reports and status, and as Prometheus metrics.

Invariant: offered = on_time + late + refused + cancelled + failed + under way. Bad input is
counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.router_inference.job import Job, Outcome

_LATENCY_BUCKETS_S = (
    0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0,
    30.0,
)  # fmt: skip
_DECISION_BUCKETS_S = (
    0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01,
)  # fmt: skip
NO_TIER = "none"
"""Tier label of requests for which none was chosen."""


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
        name = outcome.value
        setattr(self, name, getattr(self, name) + 1)
        self.delivered_reward_sum += reward


class RouterMetrics:
    """Prometheus metrics of the router.

    Children are bound once, since a look-up per request costs microseconds.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "tiercel_requests",
            "Requests by task, tier that answered or was chosen, and how they ended.",
            ["task", "tier", "outcome"],
            registry=registry,
        )
        self.latency = Histogram(
            "tiercel_request_latency_seconds",
            "From arrival to the complete answer, answered requests.",
            ["task", "tier"],
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.quality = Counter(
            "tiercel_delivered_reward",
            "Sum of delivered rewards (quality if on time); over requests it is the performance.",
            ["task"],
            registry=registry,
        )
        self.decision_time = Histogram(
            "tiercel_decision_seconds",
            "Time of one decision, observation included.",
            buckets=_DECISION_BUCKETS_S,
            registry=registry,
        )
        self.in_flight = Gauge(
            "tiercel_requests_in_flight", "Requests under way in this process.", registry=registry
        )
        self.candidate_in_flight = Gauge(
            "tiercel_candidate_in_flight",
            "Own requests dispatched and unfinished.",
            ["tier", "endpoint"],
            registry=registry,
        )
        self.candidate_availability = Gauge(
            "tiercel_candidate_availability",
            "Share of its normal traffic a candidate may get, 0 to 1.",
            ["tier", "endpoint"],
            registry=registry,
        )
        self.rescues = Counter(
            "tiercel_rescues",
            "Requests sent to a smaller tier to make it.",
            ["tier"],
            registry=registry,
        )
        self.retries = Counter(
            "tiercel_retries", "Requests sent again after a failure.", ["reason"], registry=registry
        )
        self.step_downs = Counter(
            "tiercel_step_downs",
            "Answers of a smaller tier than the largest allowed one.",
            ["reason"],
            registry=registry,
        )
        self.refused = Counter(
            "tiercel_refused_requests",
            "Requests refused before any work.",
            ["reason"],
            registry=registry,
        )
        self.failed = Counter(
            "tiercel_failed_requests",
            "Requests that could not be answered.",
            ["reason"],
            registry=registry,
        )
        self.invalid = Counter(
            "tiercel_invalid_requests",
            "Requests rejected as bad input.",
            ["reason"],
            registry=registry,
        )
        self.ejections = Counter(
            "tiercel_ejections",
            "Candidates left alone for failing.",
            ["tier", "endpoint"],
            registry=registry,
        )
        self.state_age = Gauge(
            "tiercel_state_age_seconds",
            "Age of the newest system state; NaN if none.",
            registry=registry,
        )
        self.policy_info = Gauge(
            "tiercel_policy_info",
            "1 for the policy in use.",
            ["policy", "policy_version"],
            registry=registry,
        )
        self.fallback_active = Gauge(
            "tiercel_fallback_active", "1 while the fallback policy decides.", registry=registry
        )
        self.fallbacks = Counter(
            "tiercel_fallback_decisions",
            "Decisions made by the fallback policy.",
            ["reason"],
            registry=registry,
        )
        self.refused_snapshots = Counter(
            "tiercel_refused_snapshots", "Policy snapshots refused.", ["reason"], registry=registry
        )
        self.degraded = Gauge(
            "tiercel_degraded",
            "1 for each reason the mesh is degraded.",
            ["reason"],
            registry=registry,
        )
        self.experience_written = Counter(
            "tiercel_experience_written", "Experience records written.", registry=registry
        )
        self.experience_dropped = Counter(
            "tiercel_experience_dropped",
            "Experience records lost because Redis was away.",
            registry=registry,
        )
        self.leases_expired = Counter(
            "tiercel_leases_expired", "Routed requests nobody reported on.", registry=registry
        )


class Accounts:
    """Counts every request once."""

    def __init__(self, metrics: RouterMetrics) -> None:
        self.metrics = metrics
        self.counts = Counts()
        self.tier_counts: dict[str, Counts] = {}
        self._requests: dict[tuple[str, str, Outcome], Counter] = {}
        self._latencies: dict[tuple[str, str], Histogram] = {}
        self._quality: dict[str, Counter] = {}
        metrics.in_flight.set_function(lambda: float(self.in_flight))

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self.counts.offered - self.counts.ended

    def on_offered(self) -> None:
        """Counts a request that passed the checks."""
        self.counts.offered += 1

    def on_invalid(self, reason: str) -> None:
        """Counts bad input."""
        self.counts.invalid += 1
        self.metrics.invalid.labels(reason=reason).inc()

    def on_end(self, job: Job, outcome: Outcome, delivered_reward: float) -> None:
        """Counts the end of an offered request."""
        self.counts.add(outcome, delivered_reward)
        tier = job.tier if outcome is not Outcome.REFUSED else ""
        if tier:
            counts = self.tier_counts.get(tier)
            if counts is None:
                counts = self.tier_counts[tier] = Counts()
            counts.offered += 1
            counts.add(outcome, delivered_reward)
        self._observe(job, outcome, tier or NO_TIER, delivered_reward)

    def _observe(self, job: Job, outcome: Outcome, tier: str, delivered_reward: float) -> None:
        task = job.task.name
        key = (task, tier, outcome)
        counter = self._requests.get(key)
        if counter is None:
            counter = self.metrics.requests.labels(task=task, tier=tier, outcome=outcome.value)
            self._requests[key] = counter
        counter.inc()
        if outcome is Outcome.REFUSED:
            self.metrics.refused.labels(reason=job.reason).inc()
        elif outcome is Outcome.FAILED:
            self.metrics.failed.labels(reason=job.reason).inc()
        if delivered_reward > 0.0:
            quality = self._quality.get(task)
            if quality is None:
                quality = self._quality[task] = self.metrics.quality.labels(task=task)
            quality.inc(delivered_reward)
        if job.finish_reason or outcome is Outcome.ON_TIME:
            latency = self._latencies.get((task, tier))
            if latency is None:
                latency = self.metrics.latency.labels(task=task, tier=tier)
                self._latencies[task, tier] = latency
            latency.observe(job.end_s - job.arrival_s)
