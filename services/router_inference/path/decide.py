"""From a job to a decision: observe, let the policy choose, admit or refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.fleet import Fleet
from router.guard import Guard
from router.ledger import LoadArrays
from router.policy import observe
from router.types import NoCandidateError, SloKind
from services.common.errors import UnavailableError
from services.router_inference.path.admission import Admission
from services.router_inference.path.job import Job
from services.router_inference.records.accounts import Accounts
from services.router_inference.records.convert import DecisionEntry
from services.router_inference.records.experience import ExperienceWriter
from services.router_inference.view.view import Target, View

REASON_NO_ENDPOINT = "NO_USABLE_ENDPOINT"


@dataclass(slots=True)
class Choice:
    """A decision with what it rests on; the fleet may have changed when it is looked at again.

    Attributes:
        row: chosen candidate.
        target: where it goes.
        fleet: fleet it was made on.
        load: load it was made on.
        allowed_C: candidates the request may go to.
        predicted_s_C: predicted time to the deadline's event per candidate, seconds.
    """

    row: int
    target: Target
    fleet: Fleet
    load: LoadArrays
    allowed_C: NDArray[np.bool_]
    predicted_s_C: NDArray[np.float64]


def event_tokens(job: Job) -> float:
    """Returns the predicted number of tokens until the deadline's event."""
    is_first = job.request.slo_kind is SloKind.FIRST_TOKEN
    return 1.0 if is_first else job.request.output_tokens


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
        monotonic_s: Callable[[], float],
    ) -> None:
        """Takes its parts."""
        self._view = view
        self._guard = guard
        self._admission = admission
        self._metrics = accounts.metrics
        self._experience = experience
        self._rng = rng
        self._monotonic_s = monotonic_s
        self._sequence = 0
        self._observe_time = accounts.decision_time.observe

    def decide(self, job: Job) -> Choice:
        """Chooses a candidate.

        Raises:
            UnavailableError: no endpoint is usable for it.
            ResourceExhaustedError: even the fastest candidate would miss its hard deadline.
        """
        start_s = job.decide_start_s = self._monotonic_s()
        view = self._view
        fleet = view.current_fleet(start_s)
        load = view.load()
        signals = view.signals(start_s, job.request.slack_s)
        try:
            observation = observe(
                fleet, load, job.request, signals, self._rng, own=view.own_load(load)
            )
        except NoCandidateError as error:
            raise UnavailableError(
                REASON_NO_ENDPOINT, error.reason, retry_after_s=view.retry_after_s(start_s)
            ) from None
        decision = self._guard.decide(observation, self._rng)
        self._sequence += 1
        row = int(decision.action)
        target = view.targets[row]
        deciding = self._guard
        if decision.fallback_reason:
            self._metrics.fallbacks.labels(reason=decision.fallback_reason).inc()
            job.policy, job.policy_version = deciding.fallback.name, deciding.fallback.version
        else:
            job.policy, job.policy_version = deciding.name, deciding.version
        job.sequence = self._sequence
        job.decision = decision
        job.candidates = view.candidates
        job.seen_in_flight_C = load.in_flight_C
        job.seen_rate_rps = signals.rate_short_rps
        job.seen_state_age_s = signals.state_age_s
        job.tier, job.endpoint = target.candidate
        job.quality = float(fleet.arrays.quality_KC[job.request.task, row])
        end_s = job.decide_end_s = self._monotonic_s()
        self._observe_time(end_s - start_s)
        self._experience.add(
            DecisionEntry(
                job.sequence,
                job.request_id,
                job.wall_ns(end_s),
                job.task.name,
                observation,
                job.deadline_s - end_s,
                decision,
                job.policy,
                job.policy_version,
            )
        )
        choice = Choice(
            row, target, fleet, load, observation.allowed_C, decision.predicted_latency_s_C
        )
        self._admission.check(job.request, row, choice.allowed_C, choice.predicted_s_C)
        return choice
