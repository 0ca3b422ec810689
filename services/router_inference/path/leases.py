"""Routed requests: leased from `Route` until the report, or until the lease ends.

What happens to a routed request is not seen, only claimed. So a claim is bounded by what the ticket
allowed, its load counts for no longer than such requests ordinarily take, one client holds a
bounded number of tickets, and times are those of this process's own clock.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from router.reward import answer_reward
from services.common.checks import Checks
from services.common.clock import Clock
from services.common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from services.common.times import to_ns
from services.router_inference.job import Choice, Job, Outcome
from services.router_inference.path.decide import Decider
from services.router_inference.path.dispatch import ClientLimitError, Dispatcher
from services.router_inference.path.end import REASON_LEASE_EXPIRED, Ending
from services.router_inference.path.first_token import first_token_s
from services.router_inference.path.tickets import InvalidTicketError, Ticket, TicketSigner
from services.router_inference.records.accounts import Accounts
from services.router_inference.records.convert import OUTCOME_STATUS, OutcomeEntry
from services.router_inference.records.experience import ExperienceWriter
from services.router_inference.view.fleet import Target
from services.router_inference.view.quality import LearnedQuality
from services.router_inference.view.view import View

REASON_CLOSED = "TICKET_CLOSED"
REASON_EXPIRED = "TICKET_EXPIRED"
REASON_INVALID = "TICKET_INVALID"
REASON_NOT_OWN = "TICKET_NOT_OWN"
REASON_CLIENT_FULL = "CLIENT_FULL"
_SWEEP_S = 0.05
_FEW_MOMENTS = 1_000
# A claimed load counts for this many default deadlines of its task, whatever deadline was asked
# for: after that it is more likely forgotten than still there.
_LOAD_DEADLINES = 2.0


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


class Routed(NamedTuple):
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
        first_sequence: int,
        clock_id: str,
        signer: TicketSigner,
        lease_s: float,
        max_leases: int,
        max_leases_per_client: int,
        decider: Decider,
        dispatcher: Dispatcher,
        ending: Ending,
        view: View,
        accounts: Accounts,
        experience: ExperienceWriter,
        quality: LearnedQuality,
        clock: Clock,
    ) -> None:
        """Takes its parts.

        A lease lasts `lease_s` seconds, or the task's default deadline if that is longer. Tickets
        numbered below `first_sequence` are those of a worker that was killed.
        """
        self._router_id = router_id
        self._epoch = epoch
        self._first_sequence = first_sequence
        self._clock_id = clock_id
        self._signer = signer
        self._lease_s = lease_s
        self._max_foreign = max_leases
        self._max_per_client = max_leases_per_client
        self._decider = decider
        self._dispatcher = dispatcher
        self._ending = ending
        self._view = view
        self._accounts = accounts
        self._experience = experience
        self._quality = quality
        self._clock = clock
        self._open: dict[int, Job] = {}
        self._open_by_client: Counter[str] = Counter()
        # Heaps of (moment, sequence): when leases end, when loads count no longer, and when first
        # tokens that nobody tells of are taken for come.
        self._ends: list[tuple[float, int]] = []
        self._load_ends: list[tuple[float, int]] = []
        self._first_tokens: list[tuple[float, int]] = []
        self._foreign_closed: OrderedDict[tuple[str, int, int], None] = OrderedDict()

    @property
    def open_count(self) -> int:
        """Tickets neither closed nor expired."""
        return len(self._open)

    def route(self, job: Job) -> Routed:
        """Decides for a client that has a data path of its own.

        Nobody tells of its first token, so its prompt waits for as long as it was predicted to.

        Raises:
            DomainError: refused, or no endpoint; the job is ended.
        """
        lease_s = max(self._lease_s, job.task.default_deadline_s)
        load_s = _LOAD_DEADLINES * job.task.default_deadline_s
        self.pass_first_tokens()
        choice = self._decided(job, lease_s, load_s, self._limit_of(job.client))
        first_s = first_token_s(choice, job.request)
        if first_s < load_s:  # else its load ends before
            self.expect_first_token(choice, first_s)
        request, target = job.request, choice.target
        ticket = Ticket(
            self._router_id, self._epoch, choice.sequence, self._clock_id, job.arrival_s, lease_s,
            request.slack_s, request.reward_decay_s, job.quality, job.max_output_tokens,
            job.task.name, target.tier, target.endpoint, job.request_id, job.client,
        )  # fmt: skip
        return Routed(job, choice, self._signer.sign(ticket), job.arrival_ns + to_ns(lease_s))

    def take_in(self, job: Job, lease_s: float) -> Choice:
        """Decides for a request whose end a gateway tells; its load counts until then.

        Such requests are bounded as a whole only: a gateway has many clients, and forgets none.

        Args:
            job: the request.
            lease_s: when it counts as lost, seconds from its arrival.

        Raises:
            DomainError: refused, or no endpoint; the job is ended.
        """
        return self._decided(job, lease_s, lease_s)

    def expect_first_token(self, choice: Choice, after_s: float) -> None:
        """Takes the first token of a request for come so many seconds after its decision."""
        heapq.heappush(self._first_tokens, (choice.end_s + after_s, choice.sequence))

    def pass_first_tokens(self) -> None:
        """Ends the wait of prompts whose first token is due; to be called before loads are read."""
        due = self._first_tokens
        if not due:
            return
        now_s = self._clock.monotonic_s()
        while due and due[0][0] < now_s:
            self._view.load.ledger.progress(heapq.heappop(due)[1], 1)

    def move(self, job: Job, target: Target) -> None:
        """Counts a request that was taken in where its gateway has sent it instead."""
        choice, request = job.choice, job.request
        if choice is not None and self._view.load.ledger.finish(choice.sequence):
            self._view.load.ledger.dispatch(
                choice.sequence,
                target.candidate,
                job.new_tokens_at(target.candidate),
                request.output_tokens,
            )

    def let_go(self, job: Job, outcome: Outcome, reason: str = "") -> bool:
        """Ends a request that was taken in; returns False if its lease has ended before."""
        assert job.choice is not None
        if self._take(job.choice.sequence) is None:
            return False
        self._ending.end(job, outcome, self._clock.monotonic_s(), reason)
        return True

    def _decided(
        self, job: Job, lease_s: float, load_s: float, limit: ClientLimitError | None = None
    ) -> Choice:
        """Decides, and counts the load for `load_s` and the request for `lease_s` seconds."""
        self._dispatcher.begin(job, is_routed=True, limit=limit)
        try:
            choice = self._decider.decide(job)
        except BaseException as error:
            self._dispatcher.end_with(job, error)
            raise
        request = job.request
        job.dispatch_s = choice.end_s
        self._view.load.ledger.dispatch(
            choice.sequence,
            choice.target.candidate,
            job.new_tokens_at(choice.target.candidate),
            request.output_tokens,
        )
        self._open[choice.sequence] = job
        self._open_by_client[job.client] += 1
        self._accounts.routed_count += 1
        if load_s < lease_s:  # else the load goes with the lease
            heapq.heappush(self._load_ends, (job.arrival_s + load_s, choice.sequence))
        heapq.heappush(self._ends, (job.arrival_s + lease_s, choice.sequence))
        return choice

    def owner(self, data: bytes) -> tuple[str, int]:
        """Returns id and epoch of the process that signed a ticket; none if nobody here did."""
        try:
            ticket = self._signer.read(data)
        except InvalidTicketError:
            return "", 0
        return ticket.router_id, ticket.epoch

    def close(self, data: bytes, report: Report, holder: str = "") -> None:
        """Closes a ticket.

        Args:
            data: the ticket.
            report: what is claimed.
            holder: whose tickets the caller may close; empty for everybody's.

        Raises:
            PermissionDeniedError: it is another client's.
            InvalidArgumentError: it was not signed by this mesh, or the report claims more than the
                ticket allowed.
            FailedPreconditionError: it is closed or its lease has ended.
        """
        try:
            ticket = self._signer.read(data)
        except InvalidTicketError as error:
            raise InvalidArgumentError("ticket", str(error), reason=REASON_INVALID) from None
        if holder not in ("", ticket.client):
            raise PermissionDeniedError("the ticket is another client's", reason=REASON_NOT_OWN)
        _check_claim(ticket, report)
        is_own = (ticket.router_id, ticket.epoch) == (
            self._router_id,
            self._epoch,
        ) and ticket.sequence >= self._first_sequence
        now_s = self._clock.monotonic_s()
        age_s: float | None = None
        if is_own or ticket.clock_id == self._clock_id:
            age_s = now_s - ticket.decide_s
            if age_s > ticket.lease_s:
                raise FailedPreconditionError("the ticket's lease has ended", reason=REASON_EXPIRED)
        if not is_own:
            self._close_foreign(ticket, report, age_s)
            return
        job = self._take(ticket.sequence)
        if job is None:
            raise FailedPreconditionError("the ticket is closed already", reason=REASON_CLOSED)
        # Nobody can have waited longer than since the decision.
        end_s = now_s
        if report.latency_s is not None:
            end_s = min(now_s, job.dispatch_s + report.latency_s)
        job.output_tokens = report.output_tokens
        job.is_complete = _is_answered(report)
        if report.quality is not None:
            job.quality = report.quality
            if job.is_complete:
                job.is_rated = True
                self._quality.report(job.client, job.task.name, job.tier, report.quality)
        reason = "REPORTED_FAILURE" if report.outcome is Outcome.FAILED else ""
        self._ending.end(job, report.outcome, end_s, reason)

    def feedback(self, client: str, request_id: str, quality: float) -> None:
        """Records the quality a client saw for a request of its own that was answered, once.

        Raises:
            NotFoundError: this process does not remember such a request of this client.
        """
        found = self._ending.recall(client, request_id)
        if found is None:
            raise NotFoundError("request", request_id)
        entry, task = found
        if task and entry.served_by is not None:
            self._quality.report(client, task, entry.served_by[0], quality)
        scale = quality / entry.quality if entry.quality > 0.0 else 0.0
        self._experience.add(
            entry._replace(
                reward=min(1.0, entry.reward * scale),
                delivered_reward=min(1.0, entry.delivered_reward * scale),
                feedback_quality=quality,
            )
        )

    def expire(self) -> None:
        """Takes back loads that count no longer, and ends every lease whose time is over."""
        self._forget_closed()
        self.pass_first_tokens()
        now_s = self._clock.monotonic_s()
        while self._load_ends and self._load_ends[0][0] < now_s:
            self._view.load.ledger.finish(heapq.heappop(self._load_ends)[1])
        while self._ends and self._ends[0][0] < now_s:
            job = self._take(heapq.heappop(self._ends)[1])
            if job is None:
                continue
            self._accounts.metrics.leases_expired.inc()
            self._ending.end(job, Outcome.FAILED, now_s, REASON_LEASE_EXPIRED)

    def _forget_closed(self) -> None:
        """Drops the moments of tickets that were closed before, once they are the most.

        They would go with their ends, but those of a task with a long deadline are far away.
        """
        most = 2 * len(self._open) + _FEW_MOMENTS
        for moments in (self._ends, self._load_ends, self._first_tokens):
            if len(moments) > most:
                moments[:] = [each for each in moments if each[1] in self._open]
                heapq.heapify(moments)

    async def run(self) -> None:
        """Expires leases for ever."""
        while True:
            await self._clock.sleep(_SWEEP_S)
            self.expire()

    def _limit_of(self, client: str) -> ClientLimitError | None:
        """Returns that a client has as many open tickets as it may; None if it has not."""
        count, most = self._open_by_client[client] + 1, self._max_per_client
        if count <= most:
            return None
        limit = f"{most} open tickets of one client"
        return ClientLimitError(REASON_CLIENT_FULL, limit, str(count), retry_after_s=0.1)

    def _take(self, sequence: int) -> Job | None:
        """Takes a ticket out, with its load; returns None if it is closed or has expired."""
        job = self._open.pop(sequence, None)
        if job is None:
            return None
        self._view.load.ledger.finish(sequence)
        self._accounts.routed_count -= 1
        self._open_by_client[job.client] -= 1
        if not self._open_by_client[job.client]:
            del self._open_by_client[job.client]
        return job

    def _close_foreign(self, ticket: Ticket, report: Report, age_s: float | None) -> None:
        """Writes the outcome of another worker's ticket, whose load goes back with its lease.

        It may be closed elsewhere as well: whoever counts outcomes drops the second by its ticket's
        router, epoch and sequence.

        Args:
            ticket: the ticket.
            report: what is claimed.
            age_s: time since the decision, seconds; None if another machine's clock took it.
        """
        latency_s = age_s if report.latency_s is None else report.latency_s
        if latency_s is None:
            raise InvalidArgumentError(
                "latency", "is missing; only a router on the machine that decided can tell it"
            )
        latency_s = min(latency_s, ticket.lease_s if age_s is None else age_s)
        key = (ticket.router_id, ticket.epoch, ticket.sequence)
        if key in self._foreign_closed:
            raise FailedPreconditionError("the ticket is closed already", reason=REASON_CLOSED)
        self._foreign_closed[key] = None
        if len(self._foreign_closed) > self._max_foreign:
            self._foreign_closed.popitem(last=False)
        answered = _is_answered(report)
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
                end_ns=self._clock.wall_ns(),
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


def _is_answered(report: Report) -> bool:
    """Returns whether a client says that it got an answer."""
    return report.outcome in (Outcome.ON_TIME, Outcome.LATE) and report.output_tokens > 0


def _check_claim(ticket: Ticket, report: Report) -> None:
    """Raises InvalidArgumentError if a report claims more than the ticket allowed."""
    checks = Checks()
    checks.count("output_token_count", report.output_tokens, ticket.max_output_tokens)
    checks.raise_if_any()
