"""A router's Prometheus metrics of what happens seldom."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class RouterMetrics:
    """Metrics of what happens seldom; those of every request are counted by `Accounts`."""

    def __init__(self, registry: CollectorRegistry) -> None:
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
        self.loop_lag = Gauge(
            "tiercel_loop_lag_seconds",
            "How late the event loop runs what is due; admission counts in what lasts.",
            registry=registry,
        )
        self.admission_factor = Gauge(
            "tiercel_admission_factor",
            "Factor on predictions at admission; 0 = the safety net is off.",
            registry=registry,
        )
        self.reserved_rate = Gauge(
            "tiercel_reserved_rate_rps",
            "Arrival rate that room is kept for, per second; 0 = none.",
            registry=registry,
        )
        self.target = Gauge(
            "tiercel_target",
            "Target in force, the share of the task's hard deadlines to be met; 0 means none.",
            ["task"],
            registry=registry,
        )
        self.target_pressure = Gauge(
            "tiercel_target_pressure",
            "Log of the factor on the price of device time that holds targets, 0 to 4.",
            registry=registry,
        )
        self.device_slowness = Gauge(
            "tiercel_device_slowness",
            "How slow a device is beside its profile; 1 = as the profile says.",
            ["device"],
            registry=registry,
        )
        self.tier_quality = Gauge(
            "tiercel_tier_quality",
            "Quality of a tier on a task that decisions use, where clients reported on answers.",
            ["task", "tier"],
            registry=registry,
        )
        self.tier_quality_error = Gauge(
            "tiercel_tier_quality_error",
            "Half the width of the 95 % interval of what reports say of a tier's quality.",
            ["task", "tier"],
            registry=registry,
        )
        self.quality_reports = Counter(
            "tiercel_quality_reports",
            "Reports of clients on the quality of an answer that were learned from.",
            ["task", "tier"],
            registry=registry,
        )
        self.latency_slowdown = Gauge(
            "tiercel_latency_slowdown",
            "Factor by which answers come slower than predicted, beyond an ordinary 5 %, 1 to 2.",
            registry=registry,
        )
        self.profile_age = Gauge(
            "tiercel_profile_age_seconds",
            "Time since a latency profile in use was measured; NaN if its file does not say.",
            ["profile"],
            registry=registry,
        )
        self.profile_error = Gauge(
            "tiercel_profile_error",
            "How far predictions by a profile are off: predicted / observed - 1.",
            ["profile", "tier", "range"],
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
        self.trial_info = Gauge(
            "tiercel_trial_info",
            "1 for the policy on trial beside the one in use, and its stage.",
            ["policy", "policy_version", "stage"],
            registry=registry,
        )
        self.trial_requests = Counter(
            "tiercel_trial_requests",
            "Requests of both sides of a trial's comparison that ended.",
            ["arm", "outcome", "priority"],
            registry=registry,
        )
        self.trial_stops = Counter(
            "tiercel_trial_stops",
            "Trials that this process stopped by itself.",
            ["reason"],
            registry=registry,
        )
        self.trial_seconds = Counter(
            "tiercel_trial_seconds",
            "Time spent on trials in the background, off the path of requests.",
            registry=registry,
        )
        self.watch_info = Gauge(
            "tiercel_watch_info",
            "1 for the policy in use while it is compared with the one it replaced.",
            ["policy", "policy_version"],
            registry=registry,
        )
        self.watch_returns = Counter(
            "tiercel_watch_returns",
            "Times that this process went back to the policy that was replaced, by itself.",
            ["reason"],
            registry=registry,
        )
        self.shadow_decisions = Counter(
            "tiercel_shadow_decisions",
            "Past decisions that a policy on trial was asked about, by what it chose.",
            ["choice"],
            registry=registry,
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
            "Experience records dropped unwritten, by reason.",
            ["reason"],
            registry=registry,
        )
        self.experience_oldest = Gauge(
            "tiercel_experience_oldest_seconds",
            "How long the oldest unwritten experience record has waited; 0 = none waits.",
            registry=registry,
        )
        self.client_requests = Counter(
            "tiercel_client_requests",
            "Requests by client, of those that the settings name, and how they ended.",
            ["client", "outcome"],
            registry=registry,
        )
        self.priority_lowered = Counter(
            "tiercel_priority_lowered",
            "Requests that asked for a higher class than their client may have, by client.",
            ["client"],
            registry=registry,
        )
        self.priority_price = Gauge(
            "tiercel_priority_price_factor",
            "Factor on the price of device time of a priority class; 1 = it changes nothing.",
            ["priority"],
            registry=registry,
        )
        self.leases_expired = Counter(
            "tiercel_leases_expired", "Routed requests nobody reported on.", registry=registry
        )
