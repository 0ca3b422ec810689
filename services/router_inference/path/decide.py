"""From a job to a decision: observe, admit or refuse, let the policy choose, record."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from router import priority
from router.decision import (
    DQN_ROW,
    IDLE_S,
    LARGEST_TIER,
    LEAST_S,
    NOTHING_ALLOWED,
    PREDICTED_S,
    REFUSED,
    RESCUE_S,
    STAY,
)
from router.desk import Asked, Desk
from router.guard import FallbackReason, Guard
from router.seat import NO_SEAT, Seat, Stay
from services.common.errors import UnavailableError
from services.common.log import Logger
from services.router_inference.job import Arm, Choice, Job
from services.router_inference.path.admission import Admission
from services.router_inference.path.conversations import Conversations
from services.router_inference.path.explore import Explorer
from services.router_inference.path.hold import TargetHold
from services.router_inference.path.priorities import Priorities
from services.router_inference.policy.trial import Trial
from services.router_inference.policy.watch import PolicyWatch
from services.router_inference.records.accounts import Accounts
from services.router_inference.records.convert import features_of
from services.router_inference.records.experience import ExperienceWriter
from services.router_inference.records.explanations import Explanations
from services.router_inference.view.view import View

REASON_NO_ENDPOINT = "NO_USABLE_ENDPOINT"
# A policy that raises does so at every request; its error is logged this often.
_LOG_EVERY_S = 60.0


class Decider:
    """Decides for every request of the process, one at a time."""

    def __init__(
        self,
        *,
        view: View,
        guard: Guard,
        trial: Trial,
        watch: PolicyWatch,
        admission: Admission,
        hold: TargetHold,
        priorities: Priorities,
        accounts: Accounts,
        experience: ExperienceWriter,
        explanations: Explanations,
        rng: np.random.Generator,
        next_sequence: Callable[[], int],
        monotonic_s: Callable[[], float],
        log: Logger,
        explorer: Explorer,
        conversations: Conversations | None = None,
    ) -> None:
        """Takes its parts."""
        self._explorer = explorer
        self._conversations = conversations
        self._view = view
        self._guard = guard
        self._trial = trial
        self._load_class = watch.load_class
        self._admission = admission
        self._hold = hold
        self._priorities = priorities
        self._metrics = accounts.metrics
        self._experience = experience
        self._explanations = explanations
        self._rng = rng
        self._monotonic_s = monotonic_s
        self._log = log
        self._logged_s = -math.inf
        self._next_sequence = next_sequence
        self._observe_time = accounts.decision_time.observe
        self._count_stay = accounts.on_conversation

    def decide(self, job: Job) -> Choice:
        """Chooses a candidate for a request that is admitted.

        Raises:
            UnavailableError: no endpoint is usable for it.
            ResourceExhaustedError: even the fastest candidate would miss its hard deadline.
        """
        if job.endpoints is None:
            return self._decide(job)
        with self._view.fleet.only(job.endpoints):
            return self._decide(job)

    def _decide(self, job: Job) -> Choice:
        start_s = self._monotonic_s()
        view, request = self._view, job.request
        desk = view.desk(start_s)
        held = job.held = self._hold.held(request, start_s)
        standing = self._priorities.arrive(job)
        query = view.traffic.query(
            request, start_s, held.pressure, held.is_small, standing.log_price
        )
        job.load_class = self._load_class(query.rate_short_rps)
        slack_s, factor = self._admission.terms(request, held)
        if standing.log_caution:
            factor *= priority.factor(standing.log_caution)
        desk.asked = Asked(
            query,
            request.quality_floor,
            request.tier_pin,
            float(self._rng.random()),
            slack_s,
            factor,
            self._seat(job, start_s) if job.conversation else NO_SEAT,
        )
        guard = self._guard
        if self._trial.is_deciding:
            job.arm = self._trial.arm()
            if job.arm is Arm.CANARY:
                guard = self._trial.guard
        verdict = guard.decide(desk)
        if verdict.action == NOTHING_ALLOWED:
            raise UnavailableError(
                REASON_NO_ENDPOINT,
                "no usable endpoint serves a tier this request allows",
                retry_after_s=view.fleet.retry_after_s(start_s),
            )
        result_R = desk.bound.result_R
        is_refused = verdict.action == REFUSED
        if is_refused and not job.attempts:
            job.is_impossible = self._admission.is_impossible(request.slack_s, result_R[IDLE_S])
            if job.is_impossible:  # nothing has come since it was counted: nobody waited for others
                view.traffic.on_impossible()
                self._priorities.take_back()
        if factor > 0.0 and not job.is_impossible:
            self._priorities.learn(standing, refused=is_refused)
        if is_refused:
            self._admission.refuse(
                slack_s, factor, result_R[LEAST_S], standing, is_impossible=job.is_impossible
            )
        if verdict.fallback_reason:
            self._on_fallback(guard, verdict.fallback_reason, start_s)
        drawn = self._explorer.draw(job, desk, verdict)
        target = view.fleet.targets[drawn.action]
        end_s = self._monotonic_s()
        self._observe_time(end_s - start_s)
        choice = Choice(
            sequence=self._next_sequence(),
            request_id=job.request_id,
            task=job.task.name,
            start_s=start_s,
            end_s=end_s,
            decide_ns=job.wall_ns(end_s),
            slack_s=job.deadline_s - end_s,
            inputs=view.inputs(desk),
            held=held,
            standing=standing,
            action=drawn.action,
            predicted_s=result_R[PREDICTED_S],
            rescue_s=result_R[RESCUE_S],
            largest_tier=int(result_R[LARGEST_TIER]),
            behavior_probability=drawn.probability,
            explored=drawn.explored,
            fallback_reason=verdict.fallback_reason,
            candidates=view.fleet.candidates,
            target=target,
            policy=verdict.policy.name,
            policy_version=verdict.policy.version,
            stay=self._stay(job, desk) if job.conversation else Stay.NONE,
            slo_kind=request.slo_kind,
        )
        job.choice, job.target = choice, target
        cached = job.cached_at(target.candidate)
        if cached > 0.0:
            view.traffic.on_cached(cached)
        if choice.predicted_s > request.slack_s:
            self._hold.on_late_ahead(job, start_s)
        job.quality = float(view.fleet.latest.arrays.quality_KC[request.task, drawn.action])
        has_features = desk.bound.rule.row == DQN_ROW and self._experience.takes_features
        features = features_of(desk.bound.board) if has_features else b""
        self._experience.add(choice, features)
        self._explanations.keep(choice)
        return choice

    def _seat(self, job: Job, now_s: float) -> Seat:
        """Returns where a request's conversation was served last, and keeps that in the job."""
        conversations, fleet = self._conversations, self._view.fleet
        if conversations is None:
            return NO_SEAT
        known = conversations.find(
            job.conversation, job.request.prompt_tokens, now_s, fleet.latest, fleet.candidates
        )
        if known is None:
            job.stay = Stay.NEW
            return NO_SEAT
        job.stay = Stay.CLOSED
        job.seat, job.cached_tokens = known.candidate, known.seat.cached_tokens
        return known.seat

    def _stay(self, job: Job, desk: Desk) -> Stay:
        """Returns what became of a request's conversation, and counts it."""
        found = desk.bound.result_R[STAY]
        if job.seat is not None and found < math.inf:
            job.stay = Stay(int(found))
        if job.stay is not Stay.NONE:
            self._count_stay(job.stay)
        return job.stay

    def _on_fallback(self, guard: Guard, reason: str, now_s: float) -> None:
        """Counts a decision of the fallback; logs, now and then, what the policy raised."""
        self._metrics.fallbacks.labels(reason=reason).inc()
        error = guard.last_error
        if reason != FallbackReason.POLICY_ERROR.value or error is None:
            return
        if now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now_s
            self._log.exception(
                "policy_failed",
                error,
                policy=guard.name,
                policy_version=guard.version,
                count=guard.counts[reason],
            )
