"""Requests whose bytes a gateway carries: decided here, ended by what the gateway tells.

No message comes for a token: the load counts from the decision to the end of the exchange, and
what the answer held is not known. Some gateways tell an answer's beginning, others only with its
end. A gateway is a part of the mesh, reached at an address of its own, so what it tells is taken as
seen, not as claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from http import HTTPStatus

from router.types import SloKind
from services.router_inference.job import Attempt, Choice, Job, Outcome
from services.router_inference.path.attempt import (
    REASON_DEADLINE,
    AttemptParts,
    is_at_cutoff,
)
from services.router_inference.path.dispatch import (
    REASON_ENDPOINT_FAILED,
    REASON_TIER_OVERLOADED,
    REASON_TIER_REFUSED,
)
from services.router_inference.path.first_token import first_token_s
from services.router_inference.path.leases import Leases
from services.router_inference.view.fleet import Target

REASON_CUT = "EXCHANGE_CUT"
"""Reason of an exchange that ended before its answer was complete, unless none had begun."""
GRACE_S = 5.0
"""How long after its cutoff the end of an exchange may be told."""
MOST_ALTERNATIVES = 3
"""Most endpoints beside the chosen one that a gateway may turn to."""
_RETRIED = "RETRIED_BY_GATEWAY"


class Exchange:
    """One request that a gateway carries, from its decision to its end.

    Attributes:
        job: the request.
        choice: its decision.
        targets: where the gateway may send it, the chosen target first.
        attempt: the dispatch, for its span.
        status: HTTP status of the answer; 0 until its headers have come.
        has_ended: True once its end is recorded.
    """

    __slots__ = (
        "_is_beginning_told", "_leases", "_parts", "attempt", "choice", "has_ended", "job",
        "status", "targets",
    )  # fmt: skip

    def __init__(
        self,
        parts: AttemptParts,
        leases: Leases,
        job: Job,
        choice: Choice,
        targets: list[Target],
        *,
        is_beginning_told: bool,
    ) -> None:
        self._parts = parts
        self._leases = leases
        self._is_beginning_told = is_beginning_told
        self.job = job
        self.choice = choice
        self.targets = targets
        self.attempt = Attempt(choice.target, parts.tracing.child(job), job.dispatch_s)
        self.status = 0
        self.has_ended = False
        choice.target.breaker.on_dispatch(job.dispatch_s)

    @property
    def served(self) -> Target:
        """Where it was last sent, as far as that was told."""
        return self.job.target or self.choice.target

    @property
    def is_closed(self) -> bool:
        """True once its end is recorded, by what was told or by the end of its lease."""
        return self.has_ended or self.job.outcome is not None

    @property
    def may_have_begun(self) -> bool:
        """True if something of an answer may have come."""
        return bool(self.status) or not self._is_beginning_told

    def on_headers(
        self, status: int, served: Target | None, *, first_byte_s: float | None = None
    ) -> None:
        """Takes in the beginning of the answer.

        Args:
            status: its HTTP status.
            served: who answers; None if the gateway does not tell.
            first_byte_s: when it began, seconds from the request's arrival; None = now.
        """
        job, now_s = self.job, self._parts.monotonic_s()
        self.status = status
        if served is not None and served.candidate != self.served.candidate:
            self._move(served, now_s)
        if status < HTTPStatus.BAD_REQUEST:
            job.first_token_s = now_s
            if first_byte_s is not None:
                job.first_token_s = min(now_s, job.arrival_s + first_byte_s)
            job.has_sent = True
            self._parts.view.load.ledger.progress(self.choice.sequence, 1)
            self.served.breaker.on_sign_of_life(now_s)

    def complete(self) -> None:
        """Ends it: everything of the answer has come."""
        if self.has_ended:
            return
        status, job, now_s = self.status, self.job, self._parts.monotonic_s()
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._fail(now_s)
        elif status == HTTPStatus.TOO_MANY_REQUESTS:
            self._parts.blame_refusal(self.served, f"HTTP_{status}")
            self._end(Outcome.FAILED, REASON_TIER_OVERLOADED, "overloaded", now_s)
        elif status >= HTTPStatus.BAD_REQUEST:
            self.served.breaker.on_unknown()
            self._end(Outcome.INVALID, REASON_TIER_REFUSED, "refused", now_s)
        else:
            job.is_complete, job.end_s = True, now_s
            self._parts.explain_step_down(job, self.choice, self.served)
            self.served.breaker.on_answer(now_s)
            outcome = Outcome.ON_TIME if job.deadline_event_s <= job.deadline_s else Outcome.LATE
            self._end(outcome, "", "ok", now_s)

    def drop(self) -> None:
        """Ends it where it stands: the gateway let go of it before the answer was complete."""
        if self.has_ended:
            return
        now_s = self._parts.monotonic_s()
        if is_at_cutoff(self.job, now_s):
            self._miss(now_s)
        else:
            if now_s >= self.job.deadline_s:
                self._blame_silence(now_s)
            else:
                self.served.breaker.on_unknown()
            reason = REASON_CUT if self.may_have_begun else ""
            self._end(Outcome.CANCELLED, reason, "cancelled", now_s)

    def _move(self, served: Target, now_s: float) -> None:
        """Takes in that another target answers; what the gateway tried before it has failed."""
        job = self.job
        for target in self.targets:
            if target.candidate == served.candidate:
                break
            job.retry_count += 1
            self._blame(target, _RETRIED, now_s)
        job.target = self.attempt.target = served
        tier, task = served.tier_index, job.request.task
        job.quality = float(self._parts.view.fleet.catalog.quality_KT[task, tier])
        self._leases.move(job, served)

    def _fail(self, now_s: float) -> None:
        """Ends it with an error of the endpoint, or of the way there."""
        if is_at_cutoff(self.job, now_s):
            self._miss(now_s)
            return
        # Servers say this too where the request is at fault: its sender must not close a candidate.
        is_doubt = self.status == HTTPStatus.INTERNAL_SERVER_ERROR
        self._blame(self.served, f"HTTP_{self.status}", now_s, is_doubt=is_doubt)
        self._end(Outcome.FAILED, REASON_ENDPOINT_FAILED, REASON_ENDPOINT_FAILED, now_s)

    def _miss(self, now_s: float) -> None:
        """Ends it at its deadline."""
        self._blame_silence(now_s)
        self._end(Outcome.LATE, REASON_DEADLINE, "deadline", now_s)

    def _blame_silence(self, now_s: float) -> None:
        """Counts silence, if there was any for as long as an answer may take."""
        job = self.job
        # At a timeout before any answer a gateway answers by itself, which has a status.
        has_answered = bool(job.first_token_s) or (not self.status and self.may_have_begun)
        if has_answered or now_s - job.dispatch_s < self.choice.predicted_s:
            self.served.breaker.on_unknown()
        else:
            self._parts.blame_silence(self.served, job.dispatch_s)

    def _blame(self, target: Target, reason: str, now_s: float, *, is_doubt: bool = False) -> None:
        if target.breaker.on_failure(now_s, reason, is_doubt=is_doubt):
            self._parts.count_ejection(target)

    def _end(self, outcome: Outcome, reason: str, result: str, now_s: float) -> None:
        job, attempt = self.job, self.attempt
        self.has_ended = True
        attempt.end_s, attempt.result = now_s, result
        attempt.kind = "retry" if job.retry_count else "first"
        job.attempts.append(attempt)
        if not self._leases.let_go(job, outcome, reason):
            return
        is_whole = job.request.slo_kind is SloKind.COMPLETE_ANSWER
        if is_whole and not job.retry_count and result in ("ok", "deadline"):
            taken_s = now_s - job.dispatch_s
            self._parts.teach(job, self.choice, taken_s, finished=result == "ok")


class Exchanges:
    """Begins exchanges.

    Attributes:
        are_beginnings_told: False if the gateway last heard tells of an answer only at its end.
            Then a prompt counts as waiting for as long as it was predicted to.
    """

    def __init__(self, *, parts: AttemptParts, leases: Leases) -> None:
        """Takes its parts."""
        self.are_beginnings_told = True
        self._parts = parts
        self._leases = leases

    def begin(self, job: Job, alike: Callable[[Target], Collection[tuple[str, str]]]) -> Exchange:
        """Decides for a request.

        Args:
            job: the request.
            alike: returns the candidates that could take a target's request unchanged.

        Raises:
            DomainError: refused, or no endpoint; the job is ended.
        """
        lease_s = job.cutoff_s - job.arrival_s + GRACE_S
        self._leases.pass_first_tokens()
        choice = self._leases.take_in(job, lease_s)
        if not self.are_beginnings_told:
            first_s = first_token_s(choice, job.request)
            if first_s < lease_s:  # else it ends before
                self._leases.expect_first_token(choice, first_s)
        target = choice.target
        targets, others, names = [target], alike(target), job.endpoints
        if names is not None:
            others = [each for each in others if each[1] in names]
        if others:
            found = self._parts.second_chance.alternatives(job, target, others)
            targets += found[:MOST_ALTERNATIVES]
        return Exchange(
            self._parts,
            self._leases,
            job,
            choice,
            targets,
            is_beginning_told=self.are_beginnings_told,
        )
