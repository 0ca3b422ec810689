"""What one client may take: requests under way, a rate, tokens, and a share of what is scarce.

Limits hold always. Shares hold while the router is overloaded, that is, while requests are refused
for their deadline or come late. Then there is a level: no client may have more tokens under way
than the level times its weight. The level falls while there is overload and rises slowly while
clients are held by it without any. So whoever has most is held first, who has less than the level
does not notice, and what one leaves the others take.

A router without such clients does not build any of this.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter

from router.types import Priority
from services.common.errors import ResourceExhaustedError
from services.router_inference.job import Job, Outcome
from services.router_inference.path.admission import is_hopeless
from services.router_inference.path.dispatch import ClientLimitError, Dispatcher
from services.router_inference.path.end import Ending

REASON_IN_FLIGHT = "CLIENT_IN_FLIGHT"
REASON_RATE = "CLIENT_RATE"
REASON_TOKENS = "CLIENT_TOKENS"
REASON_SHARE = "CLIENT_SHARE"
OTHER = "other"
"""Label of clients that the settings do not name."""
_BURST_S = 1.0
# The level falls at most once in the time that answers take, since a fall shows no sooner: at first
# fast, then, once it held for a while, a little.
_FIRST_CUT, _LATER_CUT = 0.5, 0.85
_FIRST_GROWTH_PER_S, _LATER_GROWTH_PER_S = 0.4, 0.15
_LONGEST_STEP_S = 1.0
_FREE_AFTER_S = 5.0
_SHORTEST_ANSWER_S = 0.02
_ANSWER_PART = 0.1
_MOST_CLIENTS = 10_000
_RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class ClientLimit:
    """What a client may take; 0 stands for no limit.

    Attributes:
        max_in_flight: requests under way.
        rate_rps: requests per second, with bursts of a second.
        tokens_per_s: prompt and output tokens per second, with bursts of a second.
        weight: its part under overload beside the others' weights.
        highest_priority: class that its requests have at most; those that ask for more have it.
    """

    max_in_flight: int = 0
    rate_rps: float = 0.0
    tokens_per_s: float = 0.0
    weight: float = 1.0
    highest_priority: Priority = Priority.HIGH


class _Client:
    """One client's account."""

    __slots__ = ("in_flight", "label", "limit", "next_request_s", "next_token_s", "tokens")

    def __init__(self, limit: ClientLimit, label: str) -> None:
        self.limit = limit
        self.label = label
        self.in_flight = 0
        self.tokens = 0.0
        # The moments at which a client that kept exactly to its rates could ask next.
        self.next_request_s = self.next_token_s = -math.inf


class Clients:
    """Accounts of every client of a router.

    Args:
        limits: By name of a client.
        others: What each of the others may take.
        requests: Counts requests by client (a name of `limits`, or `OTHER`) and outcome.
        lowered: Counts requests by client that asked for a higher class than it may have.
        monotonic_s: Tells the time.
    """

    def __init__(
        self,
        *,
        limits: Mapping[str, ClientLimit],
        others: ClientLimit,
        requests: Counter,
        lowered: Counter,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._monotonic_s = monotonic_s
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self.configure(limits, others)
        self._running: dict[int, tuple[_Client, float]] = {}
        self._level = math.inf
        self._cut_s = self._held_s = -math.inf
        self._was_held = False
        self._growth_per_s = _FIRST_GROWTH_PER_S
        self._answer_s = _SHORTEST_ANSWER_S
        self._requests = requests
        self._lowered = lowered

    def configure(self, limits: Mapping[str, ClientLimit], others: ClientLimit) -> None:
        """Takes other limits; what each client has under way stays counted."""
        self._limits = limits
        self._others = others
        for name, client in self._clients.items():
            client.limit, client.label = self._limit_of(name)

    def begin(self, job: Job) -> None:
        """Takes a request into its client's account, in a class that the client may have.

        Raises:
            ClientLimitError: The client is at a limit of its own.
            ResourceExhaustedError: It has its share already.
        """
        now_s = self._monotonic_s()
        client = self._client(job.client)
        limit = client.limit
        if job.request.priority < limit.highest_priority:
            job.request = job.request._replace(priority=limit.highest_priority)
            self._lowered.labels(client.label).inc()
        tokens = job.request.prompt_tokens + job.max_output_tokens
        if limit.max_in_flight and client.in_flight >= limit.max_in_flight:
            raise _limit(
                REASON_IN_FLIGHT, f"{limit.max_in_flight} requests", f"{client.in_flight + 1}"
            )
        if limit.rate_rps:
            # Below one a second there is no burst: each waits for its moment.
            wait_s = client.next_request_s - now_s - max(0.0, _BURST_S - 1.0 / limit.rate_rps)
            if wait_s > 0.0:
                raise _limit(REASON_RATE, f"{limit.rate_rps:g} requests/s", "more", wait_s)
        if limit.tokens_per_s and client.next_token_s - now_s > _BURST_S:
            wait_s = client.next_token_s - now_s - _BURST_S
            raise _limit(REASON_TOKENS, f"{limit.tokens_per_s:g} tokens/s", "more", wait_s)
        if client.tokens + tokens > self._level * limit.weight and client.in_flight:
            self._hold(client, tokens, now_s)
        if limit.rate_rps:
            client.next_request_s = max(now_s, client.next_request_s) + 1.0 / limit.rate_rps
        if limit.tokens_per_s:
            client.next_token_s = max(now_s, client.next_token_s) + tokens / limit.tokens_per_s
        client.in_flight += 1
        client.tokens += tokens
        self._running[id(job)] = (client, tokens)

    def end(self, job: Job, outcome: Outcome) -> None:
        """Takes a request out again; one that was never taken in is only counted."""
        client, tokens = self._running.pop(id(job), (None, 0.0))
        if client is None:
            self._requests.labels(self._client(job.client).label, outcome.value).inc()
            return
        client.in_flight -= 1
        client.tokens -= tokens
        self._requests.labels(client.label, outcome.value).inc()
        was_sent = job.choice is not None
        is_seen = not (was_sent and (job.is_routed or job.by_gateway))
        if client.limit.tokens_per_s and outcome is not Outcome.LATE and is_seen:
            # What was not generated, or went nowhere, was not taken; what a client only reports may
            # be more.
            unused = max(0, job.max_output_tokens - job.output_tokens) if was_sent else tokens
            client.next_token_s -= unused / client.limit.tokens_per_s
        is_refused = outcome is Outcome.REFUSED and is_hopeless(job)
        if is_refused or (outcome is Outcome.LATE and not job.is_routed):
            self._on_overload(tokens, client)
        elif job.is_complete and not job.is_routed:
            self._answer_s += _ANSWER_PART * (job.end_s - job.arrival_s - self._answer_s)

    def _on_overload(self, tokens: float, client: _Client) -> None:
        """Lowers the level."""
        now_s = self._monotonic_s()
        if now_s - self._cut_s < max(_SHORTEST_ANSWER_S, self._answer_s):
            return
        self._cut_s = now_s
        if math.isinf(self._level):
            running = {id(each): each for each, _ in self._running.values()}.values()
            self._level = max(
                [tokens / client.limit.weight, *(e.tokens / e.limit.weight for e in running)]
            )
        cut = self._level * (_LATER_CUT if self._was_held else _FIRST_CUT)
        # Who has nothing under way may always have one request, so a level below that holds nobody
        # more; after a long overload it would only take for ever to rise again.
        self._level = min(self._level, max(cut, tokens / client.limit.weight))
        self._growth_per_s = _LATER_GROWTH_PER_S if self._was_held else _FIRST_GROWTH_PER_S
        self._was_held = False

    def _hold(self, client: _Client, tokens: float, now_s: float) -> None:
        """Refuses what is beyond a client's share; the level rises while it holds somebody.

        Raises:
            ResourceExhaustedError: unless the level has held nobody for long.
        """
        since_s, self._held_s = now_s - self._held_s, now_s
        if since_s > _FREE_AFTER_S and now_s - self._cut_s > _FREE_AFTER_S:
            self._level = math.inf
            return
        if now_s - self._cut_s > 2.0 * self._answer_s:
            self._was_held = True
            self._level *= 1.0 + self._growth_per_s * min(since_s, _LONGEST_STEP_S)
        share = self._level * client.limit.weight
        raise ResourceExhaustedError(
            REASON_SHARE,
            f"{share:.0f} tokens under way",
            f"{client.tokens + tokens:.0f}",
            retry_after_s=_RETRY_S,
        )

    def _client(self, name: str) -> _Client:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client(*self._limit_of(name))
            if len(self._clients) > _MOST_CLIENTS:
                self._forget_idle()
        return client

    def _limit_of(self, name: str) -> tuple[ClientLimit, str]:
        """Returns what a client may take, and its label."""
        limit = self._limits.get(name)
        return (self._others, OTHER) if limit is None else (limit, name)

    def _forget_idle(self) -> None:
        """Forgets the longest known client that has nothing under way."""
        for name, client in self._clients.items():
            if not client.in_flight:
                del self._clients[name]
                return


class LimitedDispatcher(Dispatcher):
    """A dispatcher that asks for a client's limits first."""

    def __init__(self, clients: Clients, **parts: Any) -> None:
        """Takes the accounts, and what a dispatcher takes."""
        super().__init__(**parts)
        self._clients = clients

    def _refusal(self, job: Job, *, is_routed: bool) -> ResourceExhaustedError | None:
        error = super()._refusal(job, is_routed=is_routed)
        if error is None:
            try:
                self._clients.begin(job)
            except ResourceExhaustedError as held:
                error = held
        return error


class LimitedEnding(Ending):
    """An ending that gives back what a client took."""

    def __init__(self, clients: Clients, **parts: Any) -> None:
        """Takes the accounts, and what an ending takes."""
        super().__init__(**parts)
        self._clients = clients

    def end(self, job: Job, outcome: Outcome, end_s: float, reason: str = "") -> None:
        """Ends a request."""
        super().end(job, outcome, end_s, reason)
        self._clients.end(job, outcome)


def _limit(reason: str, limit: str, measured: str, wait_s: float = _RETRY_S) -> ClientLimitError:
    return ClientLimitError(reason, limit, measured, retry_after_s=wait_s)
