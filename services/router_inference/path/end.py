"""The one place where a request ends: counted, learned from, recorded, traced."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from router.estimators import OutputLengthPredictor
from router.reward import answer_reward
from router.smooth import share
from router.types import SloKind
from services.router_inference.job import Job, Outcome
from services.router_inference.path.admission import Admission, is_hopeless
from services.router_inference.path.conversations import Conversations
from services.router_inference.path.hold import TargetHold
from services.router_inference.policy.trial import Trial
from services.router_inference.policy.watch import PolicyWatch
from services.router_inference.records.accounts import Accounts
from services.router_inference.records.convert import (
    LEASE_EXPIRED,
    OUTCOME_STATUS,
    OutcomeEntry,
)
from services.router_inference.records.experience import ExperienceWriter
from services.router_inference.records.tracing import Tracing

REASON_LEASE_EXPIRED = "LEASE_EXPIRED"
"""Reason of routed requests nobody reported on."""
_LEAST_LATE_S = 1e-3
"""Lateness of an answer whose client says that it was late, if all that is known is its end."""


class Remembered(NamedTuple):
    """An ended request that feedback may come for.

    Attributes:
        entry: its record.
        task: its task; empty if its client said how good the answer was before.
    """

    entry: OutcomeEntry
    task: str


class Ending:
    """Ends requests; every offered one exactly once."""

    def __init__(
        self,
        *,
        router_id: str,
        epoch: int,
        accounts: Accounts,
        admission: Admission,
        hold: TargetHold,
        trial: Trial,
        watch: PolicyWatch,
        experience: ExperienceWriter,
        lengths: OutputLengthPredictor,
        tracing: Tracing,
        memory_count: int,
        conversations: Conversations | None = None,
    ) -> None:
        """Takes its parts; `memory_count` ended requests are remembered for feedback."""
        self._conversations = conversations
        self._router_id = router_id
        self._epoch = epoch
        self._accounts = accounts
        self._admission = admission
        self._hold = hold
        self._trial = trial
        self._watch = watch
        self._experience = experience
        self._lengths = lengths
        self._tracing = tracing
        self._memory_count = memory_count
        self._memory: OrderedDict[tuple[str, str], Remembered] = OrderedDict()

    def end(self, job: Job, outcome: Outcome, end_s: float, reason: str = "") -> None:
        """Ends a request.

        Args:
            job: the request.
            outcome: how it ended.
            end_s: when, monotonic seconds.
            reason: why it was refused or failed; empty otherwise.
        """
        assert job.outcome is None, f"request {job.request_id} ended twice"
        job.outcome = outcome
        job.end_s = end_s
        job.reason = reason
        is_answered = job.is_complete
        reward, smooth = 0.0, float(outcome is Outcome.ON_TIME)
        if is_answered:
            lateness_s = _lateness_s(job, outcome)
            smooth = share(lateness_s)
            reward = answer_reward(job.quality, lateness_s, job.request.reward_decay_s)
            limit = job.max_output_tokens
            if job.by_gateway:
                pass  # nobody counted its tokens
            elif job.is_routed:
                self._lengths.observe_claim(job.task.name, job.output_tokens, limit)
            else:
                self._lengths.observe(job.task.name, job.output_tokens, limit)
            if self._conversations is not None and job.target is not None:
                tokens = job.request.prompt_tokens + job.output_tokens
                self._conversations.on_answer(job.conversation, job.target.candidate, tokens, end_s)
        self._accounts.on_end(job, outcome, reward, smooth)
        self._admission.on_end(job)
        hopeless = is_hopeless(job)
        self._hold.on_end(job, end_s, is_hopeless=hopeless)
        self._watch.on_end(job, is_hopeless=hopeless)
        if job.arm is not None:
            self._trial.on_end(job, reward)
        is_remembered = job.is_complete and self._memory_count > 0
        if job.choice is not None and (is_remembered or self._experience.is_kept):
            self._record(job, job.choice.sequence, outcome, reward)
        self._tracing.emit(job)

    def _record(self, job: Job, sequence: int, outcome: Outcome, reward: float) -> None:
        reason = job.reason
        entry = OutcomeEntry(
            router_id=self._router_id,
            epoch=self._epoch,
            sequence=sequence,
            request_id=job.request_id,
            end_ns=job.wall_ns(job.end_s),
            status=LEASE_EXPIRED if reason == REASON_LEASE_EXPIRED else OUTCOME_STATUS[outcome],
            latency_s=job.end_s - job.arrival_s,
            first_token_s=job.first_token_s - job.arrival_s if job.first_token_s else None,
            output_tokens=job.output_tokens,
            served_by=(job.tier, job.endpoint) if job.is_complete else None,
            quality=job.quality if job.is_complete else 0.0,
            # A first choice that was given up or that failed earned nothing of what came after it
            # (rescues are for hard deadlines only, so it would have earned nothing).
            reward=0.0 if job.is_rescued or job.retry_count else reward,
            delivered_reward=reward,
            is_rescued=job.is_rescued,
            retry_count=job.retry_count,
            reason=job.reason,
            cached_prompt_tokens=round(job.cached_at((job.tier, job.endpoint))),
        )
        self._experience.add(entry)
        if job.is_complete and self._memory_count:
            task = "" if job.is_rated else job.task.name
            self._memory[job.client, job.request_id] = Remembered(entry, task)
            if len(self._memory) > self._memory_count:
                self._memory.popitem(last=False)

    def recall(self, client: str, request_id: str) -> Remembered | None:
        """Returns an ended request that its client may give feedback for, once."""
        return self._memory.pop((client, request_id), None)


def _lateness_s(job: Job, outcome: Outcome) -> float:
    """Returns by how much an answer missed its deadline, seconds; 0 or less if it did not.

    Of a routed request nobody here saw a token, so where tokens are due its client's word counts.
    """
    lateness_s = job.deadline_event_s - job.deadline_s
    if job.is_routed and job.request.slo_kind is not SloKind.COMPLETE_ANSWER:
        return 0.0 if outcome is Outcome.ON_TIME else max(lateness_s, _LEAST_LATE_S)
    return lateness_s
