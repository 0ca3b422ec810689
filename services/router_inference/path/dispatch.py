"""The request path: decide, dispatch to an endpoint, rescue, retry, end.

One coroutine per request owns everything about it. Timers are the loop's; a rescue or a client that
goes away cancels the running call, and the server stops the work.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from services.common.errors import (
    DeadlineExceededError,
    DomainError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.tiers.errors import (
    TierDeadlineError,
    TierError,
    TierInvalidError,
    TierOverloadedError,
    TierUnavailableError,
    TierUnknownError,
)
from services.router_inference.job import Choice, Job, Outcome
from services.router_inference.path.attempt import (
    REASON_DEADLINE,
    AttemptParts,
    AttemptRun,
    is_at_cutoff,
)
from services.router_inference.path.decide import Decider
from services.router_inference.path.end import Ending
from services.router_inference.path.sink import Sink
from services.router_inference.view.fleet import Target

REASON_FULL = "ROUTER_FULL"
REASON_ENDPOINT_FAILED = "ENDPOINT_FAILED"
REASON_TIER_OVERLOADED = "TIER_OVERLOADED"
REASON_TIER_REFUSED = "TIER_REFUSED_REQUEST"
REASON_INTERNAL = "INTERNAL"
_NONE_FAILED: frozenset[tuple[str, str]] = frozenset()
_NONE_BROKEN: frozenset[str] = frozenset()


class ClientLimitError(ResourceExhaustedError):
    """A client is at a limit of its own: it would be refused whatever else is under way.

    So what it asks for is no traffic. A client that is refused all day would have the others'
    requests take smaller tiers.
    """


@dataclass(frozen=True, slots=True)
class DispatchLimits:
    """Bounds of the request path.

    Attributes:
        max_in_flight: most requests under way.
        max_leases: most open tickets.
    """

    max_in_flight: int
    max_leases: int


class Dispatcher:
    """Runs requests to their end."""

    def __init__(
        self,
        *,
        decider: Decider,
        parts: AttemptParts,
        limits: DispatchLimits,
        ending: Ending,
    ) -> None:
        """Takes its parts."""
        self._view = parts.view
        self._decider = decider
        self._parts = parts
        self.limits = limits
        self._accounts = parts.accounts
        self._ending = ending
        self._tracing = parts.tracing
        self._second_chance = parts.second_chance
        self._monotonic_s = parts.monotonic_s

    async def answer(self, job: Job, sink: Sink) -> None:
        """Runs a job; every piece of the answer goes to the sink as it comes.

        Raises:
            DomainError: there is no answer, or no complete one; the job's outcome says how it
                ended.
        """
        self.begin(job)
        try:
            await self._serve(job, self._decider.decide(job), sink)
        except BaseException as error:
            self.end_with(job, error)
            raise
        self._finish(job)

    def begin(
        self, job: Job, *, is_routed: bool = False, limit: ClientLimitError | None = None
    ) -> None:
        """Counts an arrival; refuses it if the router is full.

        Args:
            job: the request.
            is_routed: True if only the decision is asked for.
            limit: the limit of its own that its client is at; None for none.

        Raises:
            ResourceExhaustedError: it is refused, and ended.
        """
        self._accounts.on_offered()
        self._tracing.begin(job)
        error: ResourceExhaustedError | None = limit
        if error is None:
            error = self._refusal(job, is_routed=is_routed)
        if not isinstance(error, ClientLimitError):
            self._view.traffic.on_arrival(job.arrival_s, job.request.prompt_tokens)
            self._second_chance.on_request()
        if error is not None:
            self.end_with(job, error)
            raise error

    def _refusal(self, job: Job, *, is_routed: bool) -> ResourceExhaustedError | None:
        """Returns why there is no room for a request; None if there is."""
        accounts, limits = self._accounts, self.limits
        if is_routed:
            count, limit = accounts.routed_count + 1, limits.max_leases
        else:
            count, limit = accounts.in_flight - accounts.routed_count, limits.max_in_flight
        if count <= limit:
            return None
        what = "open tickets" if is_routed else "requests under way"
        return ResourceExhaustedError(REASON_FULL, f"{limit} {what}", str(count), retry_after_s=0.1)

    def end_with(self, job: Job, error: BaseException) -> None:
        """Ends a job without a complete answer."""
        now_s = self._monotonic_s()
        if isinstance(error, ResourceExhaustedError) and not job.attempts:
            self._ending.end(job, Outcome.REFUSED, now_s, error.reason)
        elif isinstance(error, DeadlineExceededError):
            self._ending.end(job, Outcome.LATE, now_s, error.reason)
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            # The call's own deadline reaches us as a cancellation too.
            is_late = is_at_cutoff(job, now_s)
            outcome = Outcome.LATE if is_late else Outcome.CANCELLED
            self._ending.end(job, outcome, now_s, REASON_DEADLINE if is_late else "")
        elif isinstance(error, InvalidArgumentError):
            self._ending.end(job, Outcome.INVALID, now_s, error.reason)
        elif isinstance(error, DomainError):
            self._ending.end(job, Outcome.FAILED, now_s, error.reason)
        else:
            self._ending.end(job, Outcome.FAILED, now_s, REASON_INTERNAL)

    def _finish(self, job: Job) -> None:
        """Ends a job that was answered."""
        job.end_s = self._monotonic_s()
        outcome = Outcome.ON_TIME if job.deadline_event_s <= job.deadline_s else Outcome.LATE
        self._ending.end(job, outcome, job.end_s)

    # ---- attempts ----

    async def _serve(self, job: Job, choice: Choice, sink: Sink) -> None:
        """Dispatches until there is an answer or no candidate is left."""
        target, kind = choice.target, "first"
        failed: frozenset[tuple[str, str]] = _NONE_FAILED
        broken: frozenset[str] = _NONE_BROKEN
        doubted: Target | None = None
        while True:
            run = AttemptRun(self._parts, job, choice, target, kind, sink)
            try:
                await run.until_done()
            except TierError as error:
                failed = failed | {target.candidate}
                if isinstance(error, TierUnavailableError):
                    broken = broken | {target.address}
                is_unknown = isinstance(error, TierUnknownError)
                # What fails in two places in words unknown is not sent to a third.
                may_retry = doubted is None or not is_unknown
                doubted = target if is_unknown else doubted
                target = self._after_failure(
                    job, target, failed, broken, error, may_retry=may_retry
                )
                kind = "retry"
                continue
            if run.rescue is None:
                job.is_complete = True
                if doubted is not None:
                    self._parts.blame_doubted(doubted, target)
                self._parts.explain_step_down(job, choice, target)
                return
            target, kind = run.rescue, "rescue"

    def _after_failure(
        self,
        job: Job,
        target: Target,
        failed: frozenset[tuple[str, str]],
        broken: frozenset[str],
        error: TierError,
        *,
        may_retry: bool,
    ) -> Target:
        """Returns where to send a failed request next; raises the error it ends with if nowhere."""
        now_s = self._monotonic_s()
        if isinstance(error, TierDeadlineError) or now_s >= job.cutoff_s:
            raise self._deadline_error(job) from None
        if isinstance(error, TierInvalidError):
            raise InvalidArgumentError(
                "spec.prompt",
                f"the tier refused the request: {error.detail}",
                reason=REASON_TIER_REFUSED,
            ) from None
        found = None
        if may_retry:
            is_unknown = isinstance(error, TierUnknownError)
            found = self._second_chance.retry_target(
                job, target, failed, broken, may_be_at_fault=is_unknown
            )
        if found is not None:
            job.retry_count += 1
            self._accounts.metrics.retries.labels(reason=error.reason).inc()
            return found
        overloaded = isinstance(error, TierOverloadedError)
        raise UnavailableError(
            REASON_TIER_OVERLOADED if overloaded else REASON_ENDPOINT_FAILED,
            f"tier {target.tier} on endpoint {target.endpoint} failed: {error.detail}",
            retry_after_s=self._view.fleet.retry_after_s(now_s),
            metadata={"tier": target.tier, "endpoint": target.endpoint, "cause": error.reason},
        ) from None

    def _deadline_error(self, job: Job) -> DeadlineExceededError:
        spent_s = self._monotonic_s() - job.arrival_s
        return DeadlineExceededError(
            f"no complete answer within {job.deadline_s - job.arrival_s:.3f} s",
            reason=REASON_DEADLINE,
            metadata={
                "deadline_s": f"{job.deadline_s - job.arrival_s:.3f}",
                "spent_s": f"{spent_s:.3f}",
                "tier": job.tier,
                "endpoint": job.endpoint,
            },
        )
