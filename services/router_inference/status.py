"""What this router process sees and uses, for `GetRouterStatus` and for metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from prometheus_client import Gauge

from router.desk import Asked
from router.exploration import Exploration
from router.policies.scores import Query
from router.types import NO_TIER_PIN, Priority, Task
from services.common.clock import Clock
from services.common.times import from_ns
from services.router_inference import health_notes
from services.router_inference.health_notes import HealthNotes
from services.router_inference.job import Outcome
from services.router_inference.path.admission import Admission
from services.router_inference.path.explore import Explorer
from services.router_inference.path.hold import TargetHold
from services.router_inference.path.priorities import Priorities
from services.router_inference.path.targets import Targets
from services.router_inference.policy.slot import PolicySlot
from services.router_inference.policy.watch import PolicyWatch
from services.router_inference.records.accounts import (
    PRIORITIES,
    TASK_ENDS,
    TokenEnds,
    token_ends,
)
from services.router_inference.records.attainment import Attainment, Attainments
from services.router_inference.records.experience import ExperienceWriter
from services.router_inference.records.metrics import RouterMetrics
from services.router_inference.records.router_counts import RouterCounts
from services.router_inference.view.fleet import Target
from services.router_inference.view.profiles import ProfileStatus
from services.router_inference.view.quality import LearnedQuality, TierQuality
from services.router_inference.view.view import View

_REFRESH_S = 0.5
_NO_LOAD = (0.0, 0.0, 0.0)
ALL_RANGES = "all"
"""Range label of what holds for all answers of a tier."""


@dataclass(frozen=True, slots=True)
class CandidateStatus:
    """One candidate as this router sees it."""

    tier: str
    endpoint: str
    own_in_flight: int
    other_in_flight: int
    predicted_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class ExperienceWaiting:
    """Records not written yet, and those dropped since the start, by reason."""

    count: int
    oldest_s: float
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PriorityStatus:
    """What became of a class's requests since the start, and what device time costs one now."""

    priority: Priority
    on_time: int
    missed: int
    refused: int
    price_factor: float


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """The router's status at one moment.

    Units in the names, `state_age_s` None if no state was ever seen, `experience` None if none is
    written.
    """

    router_id: str
    epoch: int
    policy: str
    policy_version: str
    fallback_active: bool
    degraded_reasons: list[str]
    state_age_s: float | None
    candidates: list[CandidateStatus]
    topology_version: int
    arrival_rate_rps: float
    in_flight: int
    refused_snapshots: Mapping[str, int]
    known_policies: tuple[str, ...]
    tasks: tuple[Task, ...]
    attainments: list[Attainment]
    profiles: list[ProfileStatus]
    experience: ExperienceWaiting | None
    exploration: Exploration
    exploration_counts: Mapping[str, int]
    conversation_counts: Mapping[str, int]
    priorities: list[PriorityStatus]
    token_ends: Mapping[str, list[TokenEnds]]
    qualities: list[TierQuality]
    quality_version: int
    watched_activation: int = 0
    watch_problem: str = ""


class StatusReader:
    """Reads the status; also keeps the degraded reasons that only time shows up to date."""

    def __init__(
        self,
        *,
        router_id: str,
        epoch: int,
        view: View,
        slot: PolicySlot,
        watch: PolicyWatch,
        counts: RouterCounts,
        admission: Admission,
        hold: TargetHold,
        priorities: Priorities,
        targets: Targets,
        attainments: Attainments,
        metrics: RouterMetrics,
        experience: ExperienceWriter,
        quality: LearnedQuality,
        explorer: Explorer,
        notes: HealthNotes,
        clock: Clock,
        typical_output_tokens: float,
        has_monitor: bool,
    ) -> None:
        """Takes its parts.

        Args:
            router_id: name of the process.
            epoch: its start stamp.
            view: what it sees.
            slot: the policy in use.
            watch: whether it is watched.
            counts: the router's.
            admission: how cautious it is.
            hold: how far targets press.
            priorities: what classes mean.
            targets: which are in force.
            attainments: how they were met.
            metrics: where gauges are set.
            experience: knows whether Redis answers.
            quality: what was learned of the tiers.
            explorer: what it explores.
            notes: reasons for which the mesh is degraded.
            clock: tells the time.
            typical_output_tokens: answer length that candidates are compared by.
            has_monitor: False if the mesh is meant to run without one.
        """
        self._router_id = router_id
        self.epoch = epoch
        self._view = view
        self._slot = slot
        self._watch = watch
        self._counts = counts
        self._admission = admission
        self._hold = hold
        self._priorities = priorities
        self._targets = targets
        self._attainments = attainments
        self._metrics = metrics
        self._experience = experience
        self._quality = quality
        self._explorer = explorer
        self._notes = notes
        self._clock = clock
        self._typical_output_tokens = typical_output_tokens
        self._has_monitor = has_monitor
        self._last_fallbacks = 0
        self._fallback_active = False
        self._shown: tuple[Target, ...] = ()
        self._device_gauges: dict[str, Gauge] = {}
        self._candidate_gauges: list[tuple[Gauge, Gauge]] = []

    def read(self) -> RouterStatus:
        """Returns the status."""
        now_s = self._clock.monotonic_s()
        self._note(now_s)
        view = self._view
        own = view.load.totals()
        lengths = (
            max(1.0, view.traffic.mean_prompt_tokens),
            self._typical_output_tokens,
            self._typical_output_tokens,
        )
        typical = Query(0, 1.0, *lengths, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        seen = view.desk(now_s).look(Asked(typical, 0.0, NO_TIER_PIN, 0.0))
        predicted_C = seen.decided.predicted_s_C
        if not seen.allowed_C.any():  # nothing is usable, so nothing was predicted
            predicted_C = np.zeros(len(seen.allowed_C))
        candidates = [
            CandidateStatus(
                target.tier,
                target.endpoint,
                round(own.get(target.candidate, _NO_LOAD)[0]),
                round(view.load.other_in_flight(row)),
                float(predicted_C[row]),
                view.fleet.unusable_reason(row),
            )
            for row, target in enumerate(view.fleet.targets)
        ]
        return RouterStatus(
            router_id=self._router_id,
            epoch=self.epoch,
            policy=self._slot.name,
            policy_version=self._slot.version,
            fallback_active=self._slot.is_waiting or self._fallback_active,
            degraded_reasons=self._notes.reasons,
            state_age_s=view.state_age_s(now_s),
            candidates=candidates,
            topology_version=view.fleet.topology_version,
            arrival_rate_rps=view.traffic.own_rate_rps(now_s),
            in_flight=self._counts.in_flight,
            refused_snapshots=dict(self._slot.refused),
            known_policies=self._slot.known,
            tasks=view.fleet.catalog.tasks,
            attainments=self._attainments.read(),
            conversation_counts=self._counts.of_conversations,
            priorities=self._by_priority(),
            token_ends=self._token_ends(),
            qualities=self._quality.read(),
            quality_version=self._quality.version,
            watched_activation=self._watch.watched_activation,
            watch_problem=self._watch.problem,
            profiles=view.fleet.errors.read(now_s),
            experience=self._waiting_experience(),
            exploration=self._explorer.exploration,
            exploration_counts=dict(self._explorer.counts),
        )

    def _waiting_experience(self) -> ExperienceWaiting | None:
        writer = self._experience
        if not writer.is_kept:
            return None
        return ExperienceWaiting(writer.waiting_count, writer.oldest_s(), dict(writer.dropped))

    def _by_priority(self) -> list[PriorityStatus]:
        found = []
        for priority, row in zip(PRIORITIES, self._counts.by_priority().tolist(), strict=True):
            ended = dict(zip(TASK_ENDS, map(round, row), strict=True))
            found.append(
                PriorityStatus(
                    priority,
                    ended[Outcome.ON_TIME],
                    ended[Outcome.LATE] + ended[Outcome.FAILED],
                    ended[Outcome.REFUSED],
                    self._priorities.price_factor(priority),
                )
            )
        return found

    def _token_ends(self) -> dict[str, list[TokenEnds]]:
        """Returns what became of requests with deadlines for tokens, by task that had any."""
        rows = self._counts.by_task().tolist()
        ends = zip(self._counts.tasks, map(token_ends, rows), strict=False)
        return {task: found for task, found in ends if found}

    async def run(self) -> None:
        """Keeps reasons and gauges up to date for ever."""
        while True:
            now_s = self._clock.monotonic_s()
            self._note(now_s)
            fallbacks = sum(self._slot.guard.counts.values())
            self._fallback_active = fallbacks > self._last_fallbacks
            self._last_fallbacks = fallbacks
            self._targets.expire()
            self._attainments.note(now_s)
            self._show(now_s)
            await self._clock.sleep(_REFRESH_S)

    def _note(self, now_s: float) -> None:
        view, notes = self._view, self._notes
        fleet = view.current_fleet(now_s)
        age_s = view.state_age_s(now_s)
        notes.set(health_notes.NO_SYSTEM_STATE, self._has_monitor and age_s is None)
        notes.set(health_notes.STALE_SYSTEM_STATE, age_s is not None and view.is_alone)
        notes.set(health_notes.REDIS_UNREACHABLE, not self._experience.is_reachable)
        notes.set(health_notes.POLICY_UNAVAILABLE, self._slot.is_waiting, self._slot.wanted)
        unknown = view.fleet.unknown_endpoints
        notes.set(health_notes.UNKNOWN_ENDPOINTS, bool(unknown), ", ".join(unknown))
        notes.set(
            health_notes.NO_USABLE_ENDPOINT, not bool((fleet.arrays.availability_C > 0.0).any())
        )

    def _show(self, now_s: float) -> None:
        view, metrics = self._view, self._metrics
        age_s = view.state_age_s(now_s)
        metrics.state_age.set(math.nan if age_s is None else age_s)
        metrics.fallback_active.set(float(self._slot.is_waiting or self._fallback_active))
        metrics.admission_factor.set(self._admission.factor())
        metrics.target_pressure.set(self._hold.pressure())
        metrics.experience_oldest.set(self._experience.oldest_s())
        for priority in PRIORITIES:
            factor = self._priorities.price_factor(priority)
            metrics.priority_price.labels(priority=priority.label).set(factor)
        metrics.reserved_rate.set(view.traffic.kept_rps())
        metrics.target.clear()
        for task, (in_force, _) in self._targets.by_task().items():
            metrics.target.labels(task=task).set(in_force)
        metrics.latency_slowdown.set(view.traffic.latency_slowdown(now_s))
        self._show_profiles(now_s)
        if view.fleet.targets is not self._shown:
            self._make_gauges()
        for device, slowness in view.fleet.slowness.by_device().items():
            self._device_gauges[device].set(slowness)
        own = view.load.ledger.totals()
        availability_C = view.fleet.latest.arrays.availability_C.tolist()
        for target, share, (in_flight, availability) in zip(
            self._shown, availability_C, self._candidate_gauges, strict=True
        ):
            in_flight.set(own.get(target.candidate, _NO_LOAD)[0])
            availability.set(share)

    def _make_gauges(self) -> None:
        """Makes the gauges of another fleet; endpoints that left must not keep theirs.

        Only then: it takes the loop for milliseconds in a large fleet, and a scrape that comes in
        the middle misses some.
        """
        fleet, metrics = self._view.fleet, self._metrics
        self._shown = fleet.targets
        metrics.device_slowness.clear()
        self._device_gauges = {
            device: metrics.device_slowness.labels(device=device)
            for device in fleet.slowness.by_device()
        }
        metrics.candidate_in_flight.clear()
        metrics.candidate_availability.clear()
        self._candidate_gauges = [
            (
                metrics.candidate_in_flight.labels(tier=each.tier, endpoint=each.endpoint),
                metrics.candidate_availability.labels(tier=each.tier, endpoint=each.endpoint),
            )
            for each in fleet.targets
        ]

    def _show_profiles(self, now_s: float) -> None:
        metrics, wall_s = self._metrics, from_ns(self._clock.wall_ns())
        # What is known no more must not keep its last value for ever.
        metrics.profile_age.clear()
        metrics.profile_error.clear()
        for status in self._view.fleet.errors.read(now_s):
            name, age_s = status.profile.name, status.profile.age_s(wall_s)
            metrics.profile_age.labels(profile=name).set(math.nan if age_s is None else age_s)
            for each in status.errors:
                labels = {"profile": name, "tier": each.tier, "range": each.range or ALL_RANGES}
                metrics.profile_error.labels(**labels).set(each.error)
