"""One dispatch of a request to one candidate: relay, watch the clock, give up in time.

The answer comes by callbacks. At the deadline the tier's request is left instead of cancelled: a
tier in Triton knows the deadline too and ends the request itself, so that a burst of misses is no
storm of cancelled streams, which Triton does not survive. (A server that knows no deadline is left
by closing its connection.) What is given up before the deadline (the client is gone, a rescue) is
cancelled at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from router.types import NO_TIER_PIN, SloKind
from services.common.tiers.answer import TierChunk
from services.common.tiers.errors import (
    QUEUE_TIMEOUT,
    TierDeadlineError,
    TierError,
    TierInvalidError,
    TierOverloadedError,
    TierUnavailableError,
    TierUnknownError,
)
from services.router_inference.job import Attempt, Choice, Job, StepDown
from services.router_inference.path.hold import TargetHold
from services.router_inference.path.second_chance import SecondChance
from services.router_inference.path.sink import Sink
from services.router_inference.records.accounts import Accounts
from services.router_inference.records.tracing import Tracing
from services.router_inference.view.breaker import SILENT
from services.router_inference.view.fleet import Target
from services.router_inference.view.view import View

REASON_DEADLINE = "DEADLINE_EXCEEDED"
# The call's own deadline cancels a request at about the moment its timer would end it.
CUTOFF_TOLERANCE_S = 0.02
_CUTOFF_TOLERANCE_SHARE = 0.02
"""The library rounds a call's time limit up on its way here: three digits of it travel."""
_DEAF_S = 0.25
"""With a loop that is so late, seconds, the silence of an endpoint may be our own."""
_LOOK_AGAIN_S = 1.0
"""How often one looks again that waits beyond its deadline for its first token, seconds."""


def is_at_cutoff(job: Job, now_s: float) -> bool:
    """Returns whether a request that is given up now has had all of its time.

    A client ends its call by its own clock, which is a little before ours.
    """
    share_s = _CUTOFF_TOLERANCE_SHARE * (job.cutoff_s - job.arrival_s)
    return now_s >= job.cutoff_s - max(CUTOFF_TOLERANCE_S, share_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptParts:
    """What every attempt needs.

    Attributes:
        view: ledger and breakers.
        second_chance: rescues.
        hold: what holds the targets.
        accounts: counts.
        tracing: spans.
        stream_tiers: True has tiers stream even for answers that are sent as one piece.
        learn_slowness: True learns how slow each device is beside its profile.
        monotonic_s: tells the time.
        lag_s: tells how late the event loop is, seconds.
    """

    view: View
    second_chance: SecondChance
    hold: TargetHold
    accounts: Accounts
    tracing: Tracing
    stream_tiers: bool
    learn_slowness: bool
    monotonic_s: Callable[[], float]
    lag_s: Callable[[], float]

    def blame_doubted(self, doubted: Target, answered: Target) -> None:
        """Counts an error that nobody could read against its candidate: another one answered.

        Where that was another tier, the request may still have been too much for this one.
        """
        is_doubt = doubted.tier != answered.tier
        if doubted.breaker.on_failure(self.monotonic_s(), "TIER_FAILED", is_doubt=is_doubt):
            self.count_ejection(doubted)

    def teach(self, job: Job, choice: Choice, taken_s: float, *, finished: bool) -> None:
        """Lets the view learn from a first dispatch, whose prediction was made just before.

        Args:
            job: the request.
            choice: its decision.
            taken_s: how long the answer took, or how long it was waited for, seconds.
            finished: True if the answer is complete.
        """
        if self.learn_slowness:
            slowness = self.view.fleet.slowness
            slowness.observe(choice.device, taken_s, choice.profile_s, finished=finished)
        now_s = self.monotonic_s()
        self.view.traffic.on_compared(
            now_s, job.request.slack_s, taken_s, choice.predicted_s, finished=finished
        )
        target = choice.target
        prompt_tokens = job.new_tokens_at(target.candidate)
        number, profiled_s = choice.profiled(prompt_tokens, job.output_tokens if finished else 0)
        self.view.fleet.errors.observe(
            target.profile, target.tier, number, now_s, taken_s, profiled_s, finished=finished
        )

    def explain_step_down(self, job: Job, choice: Choice, target: Target) -> None:
        """Says why a smaller tier than the largest answered."""
        tier = target.tier_index
        if tier >= self.view.fleet.top_tier:
            return
        if job.request.tier_pin != NO_TIER_PIN:
            job.step_down = StepDown.PINNED
        elif job.is_rescued:
            job.step_down = StepDown.RESCUE
        elif job.retry_count and tier < choice.target.tier_index:
            job.step_down = StepDown.RETRY
        else:
            is_largest = choice.target.tier_index >= choice.largest_tier
            job.step_down = StepDown.UNAVAILABLE if is_largest else StepDown.POLICY

    def blame_silence(self, target: Target, sent_s: float) -> None:
        """Counts that a candidate let a request run out of time without a word.

        After a time in which this process did not run, what has come meanwhile was not read yet.

        Args:
            target: the candidate.
            sent_s: when the request was sent there, monotonic seconds.
        """
        if self.lag_s() > _DEAF_S:
            target.breaker.on_unknown()
        elif target.breaker.on_silence(self.monotonic_s(), sent_s):
            self.count_ejection(target)

    def blame_refusal(self, target: Target, reason: str) -> None:
        """Counts that a candidate had no room for a request.

        After a time in which this process did not run, what it said to others was not read yet.
        """
        if self.lag_s() > _DEAF_S:
            target.breaker.on_unknown()
        elif target.breaker.on_refusal(self.monotonic_s(), reason):
            self.count_ejection(target)

    def count_ejection(self, target: Target) -> None:
        """Counts that a candidate is left alone from now on."""
        self.accounts.metrics.ejections.labels(tier=target.tier, endpoint=target.endpoint).inc()


class AttemptRun:
    """One dispatch of a job to one target.

    It waits for one of these, in `_ended`; what came first counts, and an answer that comes before
    the wait is over takes the place of what ended it:

    | what | how it is kept |
    |---|---|
    | the tier's answer is complete, or failed | `_has_answered`, with `_failure` or without |
    | the deadline | none of the others |
    | a rescue is due | `rescue` |
    | its candidate is left alone for its silence | `_failure`, without `_has_answered` |
    """

    __slots__ = (
        "_ended",
        "_failure",
        "_has_answered",
        "_is_paced",
        "_key",
        "_look",
        "_look_due_s",
        "_parts",
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
        parts: AttemptParts,
        job: Job,
        choice: Choice,
        target: Target,
        kind: str,
        sink: Sink,
    ) -> None:
        self._parts = parts
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._has_answered = False
        self._failure: Exception | None = None
        self._look_due_s = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._is_paced = job.request.slo_kind is SloKind.PER_TOKEN
        self._key = (choice.sequence, len(job.attempts))
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
        parts, job, target = self._parts, self.job, self.target
        now_s = parts.monotonic_s()
        attempt = Attempt(target, parts.tracing.child(job), now_s, kind=self.kind)
        if job.attempts:
            job.output_tokens = 0
            job.first_token_s = 0.0
            self.sink.restart()
        job.attempts.append(attempt)
        job.dispatch_s = now_s
        job.target = target
        quality_KT = parts.view.fleet.catalog.quality_KT
        job.quality = quality_KT.item(job.request.task, target.tier_index)
        parts.view.load.ledger.dispatch(
            self._key,
            target.candidate,
            job.new_tokens_at(target.candidate),
            job.request.output_tokens,
        )
        target.breaker.on_dispatch(now_s)
        timer = self._arm() if self.kind == "first" else None
        try:
            await self._until_ended(attempt, job.cutoff_s - now_s)
            if self.rescue is None:
                attempt.result = "ok"
            else:
                attempt.result = "rescued"
                self._blame_silence()  # one that hangs looks idle, and would get the next one, too
                job.is_rescued = True
                parts.accounts.metrics.rescues.labels(tier=target.tier).inc()
        except TierDeadlineError:
            attempt.result = "deadline"
            self._blame_silence()
            raise
        except TierError as error:
            attempt.result = error.reason
            if error.reason != SILENT:  # which is counted already
                self._blame(error)
            raise
        except BaseException:
            now_s = parts.monotonic_s()
            is_late = is_at_cutoff(job, now_s)  # the call's own limit came first
            attempt.result = "deadline" if is_late else "cancelled"
            if is_late or now_s >= job.deadline_s:
                self._blame_silence()
            else:
                target.breaker.on_unknown()
            raise
        finally:
            attempt.end_s = parts.monotonic_s()
            if timer is not None:
                timer.cancel()
            parts.view.load.ledger.finish(self._key)
            if self.kind == "first" and job.request.slo_kind is SloKind.COMPLETE_ANSWER:
                self._teach(attempt)

    def _teach(self, attempt: Attempt) -> None:
        if attempt.result not in ("ok", "deadline", "rescued"):
            return
        taken_s = attempt.end_s - attempt.start_s
        self._parts.teach(self.job, self.choice, taken_s, finished=attempt.result == "ok")

    async def _until_ended(self, attempt: Attempt, left_s: float) -> None:
        """Returns once the answer is complete or a rescue is due; raises TierError otherwise."""
        parts, job, target = self._parts, self.job, self.target
        asking = target.client.ask(
            target.model,
            job.prompt,
            job.max_output_tokens,
            timeout_s=left_s,
            on_chunk=self._on_chunk,
            on_end=self._on_end,
            temperature=job.temperature,
            seed=job.seed,
            metadata=attempt.trace.metadata() if attempt.trace.sampled else (),
            stream=job.is_stream or parts.stream_tiers,
        )
        cutoff = asyncio.get_running_loop().call_later(max(0.0, left_s), self._wake)
        if job.request.slo_kind is not SloKind.COMPLETE_ANSWER:
            due_s = max(job.deadline_s - job.dispatch_s, self.choice.predicted_s)
            if due_s < left_s:  # else the cutoff ends the wait
                self._look_after(due_s)
        try:
            await self._ended
            if self._has_answered:
                self.rescue = None  # the end came while the rescue was being arranged
            if self._failure is not None:
                self._raise_failure(self._failure)
            if not self._has_answered and self.rescue is None:
                raise TierDeadlineError(REASON_DEADLINE, "the deadline came")
        finally:
            cutoff.cancel()
            if self._look is not None:
                self._look.cancel()
            if not self._has_answered:
                left_s = job.cutoff_s - parts.monotonic_s()
                if self.rescue is not None or left_s > CUTOFF_TOLERANCE_S:
                    asking.cancel()
                else:
                    asking.leave()

    def _raise_failure(self, failure: Exception) -> None:
        """Raises what the tier failed with."""
        if isinstance(failure, TierOverloadedError) and failure.reason == QUEUE_TIMEOUT:
            # Tiers know the deadline too: one that ends the request at it was not first to miss.
            left_s = self.job.cutoff_s - self._parts.monotonic_s()
            if left_s <= CUTOFF_TOLERANCE_S:
                raise TierDeadlineError(REASON_DEADLINE, failure.detail)
        raise failure

    def _wake(self) -> None:
        """Wakes the attempt: the answer is complete or failed, its time is up, a rescue is due."""
        if not self._ended.done():
            self._ended.set_result(None)

    def _on_chunk(self, chunk: TierChunk) -> None:
        if chunk.token_count or chunk.text:
            self._on_tokens(chunk)
        if chunk.is_final:
            self.job.finish_reason = chunk.finish_reason

    def _on_end(self, failure: Exception | None) -> None:
        self._has_answered = True
        self._failure = failure
        if failure is None:
            self.target.breaker.on_answer(self._parts.monotonic_s())
        self._wake()

    def _on_tokens(self, chunk: TierChunk) -> None:
        parts, job = self._parts, self.job
        if self._waiting:
            self._waiting = False
            job.first_token_s = job.latest_token_s = parts.monotonic_s()
            self.target.breaker.on_sign_of_life(job.first_token_s)
        elif self._is_paced:
            job.pace(parts.monotonic_s())
        job.output_tokens += chunk.token_count
        parts.view.load.ledger.progress(self._key, chunk.token_count)
        if job.is_stream:
            job.has_sent = True
        self.sink.push(chunk)

    def _arm(self) -> asyncio.TimerHandle | None:
        delay_s = self._parts.second_chance.rescue_delay_s(self.job, self.choice)
        if delay_s < 0.0:
            return None
        return asyncio.get_running_loop().call_later(delay_s, self._on_rescue_due)

    def _on_rescue_due(self) -> None:
        """Ends the run if it is about to miss and a smaller tier would make it."""
        if self.job.has_sent or self._ended.done():
            return
        # As the ledger counts it: at least one token stays due until the end.
        left_tokens = max(1.0, self.job.request.output_tokens - self.job.output_tokens)
        self.rescue = self._parts.second_chance.rescue_target(
            self.job, self.choice, self.target, left_tokens, self._waiting
        )
        if self.rescue is not None:
            self._parts.hold.on_rescue(self.job, self._parts.monotonic_s())
            self._wake()

    def _look_after(self, delay_s: float) -> None:
        self._look_due_s = self._parts.monotonic_s() + delay_s
        self._look = asyncio.get_running_loop().call_later(delay_s, self._on_overdue)

    def _on_overdue(self) -> None:
        """Ends the run if its first token is late, and its candidate is left alone as silent.

        A stream with a late token goes on, since its client reads along. Where nothing comes at all
        nobody would end its wait for a long time.
        """
        if self._ended.done() or not self._waiting:
            return
        # This comes before what measures how late the loop is, and before what lies unread.
        if self._parts.monotonic_s() - self._look_due_s <= _DEAF_S:
            self._blame_silence()
            if self.target.breaker.is_silent:
                text = "nothing came, and it is left alone for that"
                self._failure = TierUnavailableError(SILENT, text)
                self._wake()
                return
        self._look_after(_LOOK_AGAIN_S)

    def _blame(self, error: TierError) -> None:
        """Counts a failure of the endpoint, not of the request.

        What may be the request's fault waits for `blame_doubted`.
        """
        parts = self._parts
        if isinstance(error, TierOverloadedError):
            parts.blame_refusal(self.target, error.reason)
            return
        if isinstance(error, TierInvalidError | TierUnknownError):
            self.target.breaker.on_unknown()
            return
        if self.target.breaker.on_failure(parts.monotonic_s(), error.reason):
            parts.count_ejection(self.target)

    def _blame_silence(self) -> None:
        """Counts silence, but not where the request gave the candidate less time than it needs."""
        waited_s = self._parts.monotonic_s() - self.job.dispatch_s
        if not self._waiting or waited_s < self.choice.predicted_s:
            self.target.breaker.on_unknown()
        else:
            self._parts.blame_silence(self.target, self.job.dispatch_s)
