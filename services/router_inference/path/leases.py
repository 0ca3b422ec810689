"""Routed requests: their load counts from `Route` until the report, or until the lease ends."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from router.reward import answer_reward
from services.common.clock import Clock
from services.common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from services.common.times import from_ns, to_ns
from services.router_inference.path.decide import Decider
from services.router_inference.path.dispatch import Dispatcher
from services.router_inference.path.end import REASON_LEASE_EXPIRED, Ending
from services.router_inference.path.job import Choice, Job, Outcome
from services.router_inference.path.tickets import InvalidTicketError, Ticket, TicketSigner
from services.router_inference.records.accounts import Accounts
from services.router_inference.records.convert import OUTCOME_STATUS, OutcomeEntry
from services.router_inference.records.experience import ExperienceWriter
from services.router_inference.view.view import View

REASON_CLOSED = "TICKET_CLOSED"
REASON_EXPIRED = "TICKET_EXPIRED"
REASON_INVALID = "TICKET_INVALID"
_SWEEP_S = 0.05


@dataclass(frozen=True, slots=True)
class Report:
    """What a client says about a routed request.

    Attributes:
        outcome: how it ended.
        latency_s: from the decision to the end, seconds; None = until now.
        output_tokens: tokens delivered.
        quality: quality of this very answer; None = the tier's table value.
    """

    outcome: Outcome
    latency_s: float | None
    output_tokens: int
    quality: float | None


@dataclass(frozen=True, slots=True)
class Routed:
    """Answer of `Route`.

    Attributes:
        job: the request.
        choice: its decision.
        ticket: signed ticket.
        lease_end_ns: when the lease ends, ns since 1970.
    """

    job: Job
    choice: Choice
    ticket: bytes
    lease_end_ns: int


class Leases:
    """Open tickets of this process.

    Tickets of other workers with the same key can be closed here too.
    """

    def __init__(
        self,
        *,
        router_id: str,
        epoch: int,
        signer: TicketSigner,
        lease_s: float,
        decider: Decider,
        dispatcher: Dispatcher,
        ending: Ending,
        view: View,
        accounts: Accounts,
        experience: ExperienceWriter,
        clock: Clock,
    ) -> None:
        """Takes its parts.

        A lease lasts `lease_s` seconds, or until the deadline if that is later.
        """
        self._router_id = router_id
        self._epoch = epoch
        self._signer = signer
        self._lease_s = lease_s
        self._decider = decider
        self._dispatcher = dispatcher
        self._ending = ending
        self._view = view
        self._accounts = accounts
        self._experience = experience
        self._clock = clock
        self._open: dict[int, Job] = {}
        # Nearly in order of their ends: all leases are equally long but for very late deadlines.
        self._ends: deque[tuple[int, int]] = deque()
        self._foreign_closed: dict[tuple[str, int, int], int] = {}

    @property
    def open_count(self) -> int:
        """Tickets neither closed nor expired."""
        return len(self._open)

    def route(self, job: Job) -> Routed:
        """Decides for a client that has a data path of its own.

        Raises:
            DomainError: refused, or no endpoint; the job is ended.
        """
        self._dispatcher.begin(job, is_routed=True)
        try:
            choice = self._decider.decide(job)
        except BaseException as error:
            self._dispatcher.end_with(job, error)
            raise
        lease_s = max(self._lease_s, job.request.slack_s)
        decide_ns = job.arrival_ns
        lease_end_ns = decide_ns + to_ns(lease_s)
        request = job.request
        ticket = self._signer.sign(
            Ticket(
                router_id=self._router_id,
                epoch=self._epoch,
                sequence=choice.sequence,
                decide_ns=decide_ns,
                lease_end_ns=lease_end_ns,
                slack_s=request.slack_s,
                soft_decay_s=request.reward_decay_s,
                quality=job.quality,
                task=job.task.name,
                tier=choice.target.tier,
                endpoint=choice.target.endpoint,
                request_id=job.request_id,
            )
        )
        job.dispatch_s = choice.end_s
        self._view.load.ledger.dispatch(
            choice.sequence, choice.target.candidate, request.prompt_tokens, request.output_tokens
        )
        self._open[choice.sequence] = job
        self._accounts.routed_count += 1
        self._ends.append((lease_end_ns, choice.sequence))
        return Routed(job, choice, ticket, lease_end_ns)

    def close(self, data: bytes, report: Report) -> None:
        """Closes a ticket.

        Raises:
            InvalidArgumentError: it was not signed by this mesh.
            FailedPreconditionError: it is closed or its lease has ended.
        """
        try:
            ticket = self._signer.read(data)
        except InvalidTicketError as error:
            raise InvalidArgumentError("ticket", str(error), reason=REASON_INVALID) from None
        now_ns = self._clock.wall_ns()
        if now_ns > ticket.lease_end_ns:
            raise FailedPreconditionError("the ticket's lease has ended", reason=REASON_EXPIRED)
        if (ticket.router_id, ticket.epoch) != (self._router_id, self._epoch):
            self._close_foreign(ticket, report, now_ns)
            return
        job = self._open.pop(ticket.sequence, None)
        if job is None:
            raise FailedPreconditionError("the ticket is closed already", reason=REASON_CLOSED)
        self._view.load.ledger.finish(ticket.sequence)
        self._accounts.routed_count -= 1
        now_s = self._clock.monotonic_s()
        end_s = now_s if report.latency_s is None else job.dispatch_s + report.latency_s
        answered = report.outcome in (Outcome.ON_TIME, Outcome.LATE)
        job.output_tokens = report.output_tokens
        job.is_complete = answered and report.output_tokens > 0
        if report.quality is not None:
            job.quality = report.quality
        reason = "REPORTED_FAILURE" if report.outcome is Outcome.FAILED else ""
        self._ending.end(job, report.outcome, end_s, reason)

    def feedback(self, request_id: str, quality: float) -> None:
        """Records the quality a client saw for an answered request.

        Raises:
            NotFoundError: this process does not remember the request.
        """
        entry = self._ending.recall(request_id)
        if entry is None:
            raise NotFoundError("request", request_id[:64])
        scale = quality / entry.quality if entry.quality > 0.0 else 0.0
        self._experience.add(
            replace(
                entry,
                reward=min(1.0, entry.reward * scale),
                delivered_reward=min(1.0, entry.delivered_reward * scale),
                feedback_quality=quality,
            )
        )

    def expire(self) -> None:
        """Takes back the load of every lease that has ended."""
        now_ns = self._clock.wall_ns()
        while self._ends and self._ends[0][0] < now_ns:
            _, sequence = self._ends.popleft()
            job = self._open.pop(sequence, None)
            if job is None:
                continue
            self._view.load.ledger.finish(sequence)
            self._accounts.routed_count -= 1
            self._accounts.metrics.leases_expired.inc()
            self._ending.end(job, Outcome.FAILED, self._clock.monotonic_s(), REASON_LEASE_EXPIRED)
        if self._foreign_closed:
            self._foreign_closed = {
                key: end_ns for key, end_ns in self._foreign_closed.items() if end_ns >= now_ns
            }

    async def run(self) -> None:
        """Expires leases for ever."""
        while True:
            await self._clock.sleep(_SWEEP_S)
            self.expire()

    def _close_foreign(self, ticket: Ticket, report: Report, now_ns: int) -> None:
        """Writes the outcome of another worker's ticket, whose load goes back with its lease."""
        key = (ticket.router_id, ticket.epoch, ticket.sequence)
        if key in self._foreign_closed:
            raise FailedPreconditionError("the ticket is closed already", reason=REASON_CLOSED)
        self._foreign_closed[key] = ticket.lease_end_ns
        latency_s = (
            from_ns(now_ns - ticket.decide_ns) if report.latency_s is None else report.latency_s
        )
        answered = report.outcome in (Outcome.ON_TIME, Outcome.LATE)
        quality = ticket.quality if report.quality is None else report.quality
        lateness_s = max(0.0, latency_s - ticket.slack_s)
        if report.outcome is Outcome.ON_TIME:
            lateness_s = 0.0
        reward = 0.0
        if answered:
            reward = answer_reward(quality, lateness_s, ticket.soft_decay_s)
        self._experience.add(
            OutcomeEntry(
                router_id=ticket.router_id,
                epoch=ticket.epoch,
                sequence=ticket.sequence,
                request_id=ticket.request_id,
                end_ns=now_ns,
                status=OUTCOME_STATUS[report.outcome],
                latency_s=latency_s,
                first_token_s=None,
                output_tokens=report.output_tokens,
                served_by=(ticket.tier, ticket.endpoint) if answered else None,
                quality=quality if answered else 0.0,
                reward=reward,
                delivered_reward=reward,
            )
        )
