"""From a job to a decision: observe, admit or refuse, let the policy choose, record."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from router.guard import FallbackReason, Guard
from router.policy import Policy, observe
from router.types import NoCandidateError
from services.common.errors import UnavailableError
from services.common.log import Logger
from services.router_inference.job import Choice, Job
from services.router_inference.path.admission import Admission
from services.router_inference.records.accounts import Accounts
from services.router_inference.records.experience import ExperienceWriter
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
        admission: Admission,
        accounts: Accounts,
        experience: ExperienceWriter,
        rng: np.random.Generator,
        next_sequence: Callable[[], int],
        monotonic_s: Callable[[], float],
        log: Logger,
    ) -> None:
        """Takes its parts."""
        self._view = view
        self._guard = guard
        self._admission = admission
        self._metrics = accounts.metrics
        self._experience = experience
        self._rng = rng
        self._monotonic_s = monotonic_s
        self._log = log
        self._logged_s = -math.inf
        self._next_sequence = next_sequence
        self._observe_time = accounts.decision_time.observe

    def decide(self, job: Job) -> Choice:
        """Chooses a candidate for a request that is admitted.

        Raises:
            UnavailableError: no endpoint is usable for it.
            ResourceExhaustedError: even the fastest candidate would miss its hard deadline.
        """
        start_s = self._monotonic_s()
        view, request = self._view, job.request
        fleet = view.current_fleet(start_s)
        load = view.load.current()
        signals = view.traffic.signals(start_s, request.slack_s)
        try:
            observation = observe(
                fleet, load, request, signals, self._rng, own=view.load.own_part()
            )
        except NoCandidateError as error:
            raise UnavailableError(
                REASON_NO_ENDPOINT, error.reason, retry_after_s=view.fleet.retry_after_s(start_s)
            ) from None
        self._admission.check(observation)
        decision = self._guard.decide(observation, self._rng)
        policy: Guard | Policy = self._guard
        if decision.fallback_reason:
            policy = self._guard.fallback
            self._on_fallback(decision.fallback_reason, start_s)
        target = view.fleet.targets[decision.action]
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
            observation=observation,
            decision=decision,
            candidates=view.fleet.candidates,
            target=target,
            policy=policy.name,
            policy_version=policy.version,
        )
        job.choice, job.target = choice, target
        job.quality = fleet.lists.quality_KC[request.task][decision.action]
        self._experience.add(choice)
        return choice

    def _on_fallback(self, reason: str, now_s: float) -> None:
        """Counts a decision of the fallback; logs, now and then, what the policy raised."""
        self._metrics.fallbacks.labels(reason=reason).inc()
        error = self._guard.last_error
        if reason != FallbackReason.POLICY_ERROR.value or error is None:
            return
        if now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now_s
            self._log.exception(
                "policy_failed",
                error,
                policy=self._guard.name,
                policy_version=self._guard.version,
                count=self._guard.counts[reason],
            )
