"""The request path: decide, dispatch to Triton, rescue, retry, end.

One coroutine per request owns everything about it. Timers are the loop's; a rescue or the cutoff
cancels the running
Triton call, and Triton stops the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from router import safety
from router.ledger import LoadArrays
from router.policy import observe
from router.safety import SafetyLimits
from router.types import NO_TIER_PIN, NoCandidateError, RewardKind, SloKind
from services.common.errors import (
    DeadlineExceededError,
    DomainError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.triton.client import TierChunk
from services.common.triton.errors import (
    TierDeadlineError,
    TierError,
    TierInvalidError,
    TierOverloadedError,
)
from services.router_inference.accounts import Accounts
from services.router_inference.breaker import RetryBudget
from services.router_inference.decider import Choice, Decider, event_tokens, rescue_delay_s
from services.router_inference.ending import Ending
from services.router_inference.job import Attempt, Job, Outcome, StepDown
from services.router_inference.tracing import Tracing
from services.router_inference.view import Target, View

REASON_FULL = "ROUTER_FULL"
REASON_DEADLINE = "DEADLINE_EXCEEDED"
REASON_ENDPOINT_FAILED = "ENDPOINT_FAILED"
REASON_TIER_OVERLOADED = "TIER_OVERLOADED"
REASON_TIER_REFUSED = "TIER_REFUSED_REQUEST"
REASON_INTERNAL = "INTERNAL"
# A timer and Triton's own deadline end a call at about the same moment; either means the cutoff.
_CUTOFF_TOLERANCE_S = 0.02
# A request without a token after this many times its predicted time is taken for stuck.
_OVERDUE_FACTOR = 2.0
_NONE_FAILED: frozenset[tuple[str, str]] = frozenset()


class Sink(Protocol):
    """Where the pieces of an answer go."""

    def push(self, chunk: TierChunk) -> None:
        """Takes a piece; must not block."""

    def restart(self) -> None:
        """Forgets the pieces so far: another tier starts again from the beginning."""


class TextSink:
    """Collects an answer that is sent as one piece."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[str] = []

    def push(self, chunk: TierChunk) -> None:
        """Takes a piece."""
        self._parts.append(chunk.text)

    def restart(self) -> None:
        """Forgets the pieces so far."""
        self._parts.clear()

    def text(self) -> str:
        """Returns the answer."""
        return "".join(self._parts)


@dataclass(frozen=True, slots=True)
class DispatchLimits:
    """Bounds of the request path.

    Attributes:
        max_in_flight: most requests under way.
        max_leases: most open tickets.
        max_retries: most retries of one request.
        stream_tiers: True has tiers stream even for answers that are sent as one piece.
    """

    max_in_flight: int
    max_leases: int
    max_retries: int
    stream_tiers: bool


class Dispatcher:
    """Runs requests to their end."""

    def __init__(
        self,
        *,
        view: View,
        decider: Decider,
        safety_limits: SafetyLimits | None,
        limits: DispatchLimits,
        budget: RetryBudget,
        accounts: Accounts,
        ending: Ending,
        tracing: Tracing,
        rng: np.random.Generator,
        monotonic_s: Callable[[], float],
    ) -> None:
        """Takes its parts; `safety_limits` None switches the safety net off."""
        self._view = view
        self._decider = decider
        self._safety_limits = safety_limits
        self._limits = limits
        self._budget = budget
        self._accounts = accounts
        self._ending = ending
        self._tracing = tracing
        self._rng = rng
        self._monotonic_s = monotonic_s

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

    def begin(self, job: Job, *, is_routed: bool = False) -> None:
        """Counts an arrival; refuses it if the router is full."""
        self._accounts.on_offered()
        self._view.on_arrival(job.arrival_s, job.request.prompt_tokens)
        self._budget.on_request()
        self._tracing.begin(job)
        accounts, limits = self._accounts, self._limits
        if is_routed:
            count, limit = accounts.routed_count + 1, limits.max_leases
        else:
            count, limit = accounts.in_flight - accounts.routed_count, limits.max_in_flight
        if count > limit:
            what = "open tickets" if is_routed else "requests under way"
            error = ResourceExhaustedError(
                REASON_FULL, f"{limit} {what}", str(count), retry_after_s=0.1
            )
            self.end_with(job, error)
            raise error

    def end_with(self, job: Job, error: BaseException) -> None:
        """Ends a job without a complete answer."""
        now_s = self._monotonic_s()
        if isinstance(error, ResourceExhaustedError) and not job.attempts:
            self._ending.end(job, Outcome.REFUSED, now_s, error.reason)
        elif isinstance(error, DeadlineExceededError):
            self._ending.end(job, Outcome.LATE, now_s, error.reason)
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            # The call's own deadline reaches us as a cancellation too.
            is_late = now_s >= job.cutoff_s - _CUTOFF_TOLERANCE_S
            outcome = Outcome.LATE if is_late else Outcome.CANCELLED
            self._ending.end(job, outcome, now_s, REASON_DEADLINE if is_late else "")
        elif isinstance(error, DomainError):
            self._ending.end(job, Outcome.FAILED, now_s, error.reason)
        else:
            self._ending.end(job, Outcome.FAILED, now_s, REASON_INTERNAL)

    def _finish(self, job: Job) -> None:
        """Ends a job that was answered."""
        now_s = self._monotonic_s()
        is_first = job.request.slo_kind is SloKind.FIRST_TOKEN
        done_s = job.first_token_s if is_first and job.first_token_s else now_s
        outcome = Outcome.ON_TIME if done_s <= job.deadline_s else Outcome.LATE
        self._ending.end(job, outcome, now_s)

    # ---- attempts ----

    async def _serve(self, job: Job, choice: Choice, sink: Sink) -> None:
        """Dispatches until there is an answer or no candidate is left."""
        target, kind = choice.target, "first"
        failed: frozenset[tuple[str, str]] = _NONE_FAILED
        while True:
            run = _Run(self, job, choice, target, kind, sink)
            try:
                await run.until_done()
            except TierError as error:
                failed = failed | {target.candidate}
                target = self._after_failure(job, target, failed, error)
                kind = "retry"
                continue
            if run.rescue is None:
                job.is_complete = True
                self._explain_step_down(job, choice, target)
                return
            target, kind = run.rescue, "rescue"

    def _after_failure(
        self, job: Job, target: Target, failed: frozenset[tuple[str, str]], error: TierError
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
        is_open = self._safety_limits is not None and not job.has_sent
        if is_open and job.retry_count < self._limits.max_retries:
            found = self._retry_target(job, target, failed, now_s)
            if found is not None and self._budget.take():
                job.retry_count += 1
                self._accounts.metrics.retries.labels(reason=error.reason).inc()
                return found
        overloaded = isinstance(error, TierOverloadedError)
        raise UnavailableError(
            REASON_TIER_OVERLOADED if overloaded else REASON_ENDPOINT_FAILED,
            f"tier {target.tier} on endpoint {target.endpoint} failed: {error.detail}",
            retry_after_s=self._view.retry_after_s(now_s),
            metadata={"tier": target.tier, "endpoint": target.endpoint, "cause": error.reason},
        ) from None

    def _retry_target(
        self, job: Job, target: Target, failed: frozenset[tuple[str, str]], now_s: float
    ) -> Target | None:
        """Returns another endpoint of the tier, else the best tier below, else any tier above.

        None if there is none.
        """
        view = self._view
        fleet = view.current_fleet(now_s)
        excluded_C = np.array([item.candidate in failed for item in view.targets], dtype=np.bool_)
        try:
            observation = observe(
                fleet, view.load(), job.request, view.signals(now_s), self._rng, excluded_C
            )
        except NoCandidateError:
            return None
        predicted_C = np.empty(fleet.candidate_count)
        safety.smallest_latency_s(
            fleet.arrays, observation.load, observation.allowed_C, job.request.prompt_tokens,
            event_tokens(job), predicted_C,
        )  # fmt: skip
        rows = np.flatnonzero(observation.allowed_C).tolist()

        def rank(row: int) -> tuple[int, float]:
            step = target.tier_index - view.targets[row].tier_index
            # The tier itself, then downwards, then upwards.
            return (step if step >= 0 else len(view.catalog.tiers) - step, float(predicted_C[row]))

        return view.targets[min(rows, key=rank)]

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

    def _explain_step_down(self, job: Job, choice: Choice, target: Target) -> None:
        """Says why a smaller tier than the largest answered."""
        tier = target.tier_index
        if tier >= self._view.top_tier:
            return
        if job.request.tier_pin != NO_TIER_PIN:
            job.step_down = StepDown.PINNED
        elif job.is_rescued:
            job.step_down = StepDown.RESCUE
        elif job.retry_count and tier < choice.target.tier_index:
            job.step_down = StepDown.RETRY
        else:
            largest = int(choice.fleet.arrays.tier_C[choice.allowed_C].max())
            chosen = choice.target.tier_index
            job.step_down = StepDown.UNAVAILABLE if chosen >= largest else StepDown.POLICY

    # ---- what a run needs ----

    def rescue_delay_s(self, job: Job, choice: Choice) -> float:
        """Returns when the rescue timer of a first dispatch is due, seconds from now.

        -1 for none.
        """
        request = job.request
        if self._safety_limits is None or request.tier_pin != NO_TIER_PIN:
            return -1.0
        if request.reward_kind is not RewardKind.HARD:
            return -1.0  # late is better than worse there
        if choice.target.tier_index == 0:
            return -1.0  # nothing is smaller
        slack_s = job.deadline_s - self._monotonic_s()
        return rescue_delay_s(choice, slack_s, self._safety_limits)

    def rescue_target(
        self, job: Job, choice: Choice, target: Target, left_tokens: float, waiting: bool
    ) -> Target | None:
        """Returns the smaller tier a request should be sent to now, None if it should stay.

        Args:
            job: the request.
            choice: its decision.
            target: where it is.
            left_tokens: predicted output tokens still to come.
            waiting: True if no token has come yet.
        """
        limits, view, now_s = self._safety_limits, self._view, self._monotonic_s()
        assert limits is not None
        fleet = view.current_fleet(now_s)
        row = fleet.row.get(target.candidate)
        if row is None:
            return None
        load, request = view.load(), job.request
        slack_s = job.deadline_s - now_s
        # Load alone never tells that an endpoint hangs; twice the predicted time in silence does.
        predicted_s = float(choice.predicted_s_C[choice.row])
        is_overdue = waiting and now_s - job.dispatch_s > _OVERDUE_FACTOR * predicted_s
        event_left = min(left_tokens, event_tokens(job))
        if not is_overdue and not safety.about_to_miss(
            fleet.lists, load, row, slack_s, request.prompt_tokens, event_left, waiting,
            limits.optimism,
        ):  # fmt: skip
            return None
        without = LoadArrays(*(part.copy() for part in load))
        without.in_flight_C[row] -= 1.0
        without.remaining_output_tokens_C[row] -= left_tokens
        if waiting:
            without.waiting_prompt_tokens_C[row] -= request.prompt_tokens
        try:
            observation = observe(fleet, without, request, view.signals(now_s), self._rng)
        except NoCandidateError:
            return None
        scratch_C = np.empty(fleet.candidate_count)
        found = safety.choose_rescue(
            fleet.lists, without, observation.allowed_C, row, request.task, slack_s,
            request.prompt_tokens, event_tokens(job), limits.margin, scratch_C,
        )  # fmt: skip
        return None if found < 0 else view.targets[found]


class _Run:
    """One dispatch of a job to one target."""

    __slots__ = (
        "_d",
        "_key",
        "_scope",
        "_waiting",
        "choice",
        "job",
        "kind",
        "rescue",
        "sink",
        "target",
    )

    def __init__(
        self,
        dispatcher: Dispatcher,
        job: Job,
        choice: Choice,
        target: Target,
        kind: str,
        sink: Sink,
    ) -> None:
        self._d = dispatcher
        self._scope: asyncio.Timeout | None = None
        self._key = (job.sequence, len(job.attempts))
        self._waiting = True
        self.job = job
        self.choice = choice
        self.target = target
        self.kind = kind
        self.sink = sink
        self.rescue: Target | None = None

    async def until_done(self) -> None:
        """Returns once the answer is complete or a rescue is due (`rescue` says where to).

        Raises:
            TierError: the candidate failed, or the deadline came.
        """
        d, job, target = self._d, self.job, self.target
        now_s = d._monotonic_s()
        attempt = Attempt(
            target.tier, target.endpoint, d._tracing.child(job), now_s, kind=self.kind
        )
        if job.attempts:
            job.output_tokens = 0
            job.first_token_s = 0.0
            self.sink.restart()
        job.attempts.append(attempt)
        job.dispatch_s = now_s
        job.tier, job.endpoint = target.candidate
        job.quality = float(d._view.catalog.quality_KT[job.request.task, target.tier_index])
        d._view.ledger.dispatch(
            self._key, target.candidate, job.request.prompt_tokens, job.request.output_tokens
        )
        target.breaker.on_dispatch()
        timer = self._arm() if self.kind == "first" else None
        try:
            await self._receive(attempt, job.cutoff_s - now_s)
            attempt.result = "ok"
        except TimeoutError:
            if self.rescue is None:
                attempt.result = "deadline"
                self._blame_silence(now_s)
                raise TierDeadlineError(REASON_DEADLINE, "the deadline came") from None
            attempt.result = "rescued"
            target.breaker.on_unknown()
            job.is_rescued = True
            d._accounts.metrics.rescues.labels(tier=target.tier).inc()
        except TierDeadlineError:
            attempt.result = "deadline"
            self._blame_silence(now_s)
            raise
        except TierError as error:
            attempt.result = error.reason
            self._blame(error)
            raise
        except BaseException:
            attempt.result = "cancelled"
            target.breaker.on_unknown()
            raise
        finally:
            attempt.end_s = d._monotonic_s()
            if timer is not None:
                timer.cancel()
            d._view.ledger.finish(self._key)

    async def _receive(self, attempt: Attempt, left_s: float) -> None:
        """Relays the answer; raises TimeoutError at the cutoff or at a rescue."""
        d, job, target = self._d, self.job, self.target
        stream = job.is_stream or d._limits.stream_tiers
        metadata = attempt.trace.metadata() if attempt.trace.sampled else ()
        async with asyncio.timeout(left_s) as self._scope:
            chunks = target.client.generate(
                target.model,
                job.prompt,
                job.max_output_tokens,
                timeout_s=left_s,
                temperature=job.temperature,
                seed=job.seed,
                metadata=metadata,
                stream=stream,
                request_id=job.request_id,
            )
            async with aclosing(chunks):
                async for chunk in chunks:
                    if chunk.token_count or chunk.text:
                        self._on_tokens(chunk)
                    if chunk.is_final:
                        job.finish_reason = chunk.finish_reason
        if self._waiting:
            # An empty answer is an answer.
            target.breaker.on_sign_of_life(d._monotonic_s())
            d._view.touch()

    def _on_tokens(self, chunk: TierChunk) -> None:
        d, job = self._d, self.job
        if self._waiting:
            self._waiting = False
            job.first_token_s = d._monotonic_s()
            breaker = self.target.breaker
            if not breaker.settled:
                d._view.touch()
            breaker.on_sign_of_life(job.first_token_s)
        job.output_tokens += chunk.token_count
        d._view.ledger.progress(self._key, chunk.token_count)
        if job.is_stream:
            job.has_sent = True
        self.sink.push(chunk)

    def _arm(self) -> asyncio.TimerHandle | None:
        delay_s = self._d.rescue_delay_s(self.job, self.choice)
        if delay_s < 0.0:
            return None
        return asyncio.get_running_loop().call_later(delay_s, self._on_rescue_due)

    def _on_rescue_due(self) -> None:
        """Cancels the run if it is about to miss and a smaller tier would make it."""
        if self.job.has_sent or self._scope is None:
            return
        # As the ledger counts it: at least one token stays due until the end.
        left_tokens = max(1.0, self.job.request.output_tokens - self.job.output_tokens)
        self.rescue = self._d.rescue_target(
            self.job, self.choice, self.target, left_tokens, self._waiting
        )
        if self.rescue is not None:
            with suppress(RuntimeError):  # the run has just ended
                self._scope.reschedule(asyncio.get_running_loop().time())

    def _blame(self, error: TierError) -> None:
        """Counts a failure of the endpoint, not of the request or of its queue."""
        if isinstance(error, TierInvalidError | TierOverloadedError):
            self.target.breaker.on_unknown()
            return
        d = self._d
        if self.target.breaker.on_failure(d._monotonic_s(), error.reason):
            self._count_ejection()
        d._view.touch()

    def _blame_silence(self, dispatch_s: float) -> None:
        if not self._waiting:
            self.target.breaker.on_unknown()
        elif self.target.breaker.on_silence(self._d._monotonic_s(), dispatch_s):
            self._count_ejection()
            self._d._view.touch()

    def _count_ejection(self) -> None:
        tier, endpoint = self.target.candidate
        self._d._accounts.metrics.ejections.labels(tier=tier, endpoint=endpoint).inc()
