"""What the safety net does for a request that was dispatched: rescue it, or retry it elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from router import safety
from router.desk import Asked
from router.fleet import Fleet
from router.policies.scores import Query
from router.safety import SafetyLimits
from router.seat import NO_SEAT, NOWHERE, Seat
from router.types import NO_TIER_PIN, RewardKind
from services.router_inference.job import Choice, Job
from services.router_inference.view.fleet import Target
from services.router_inference.view.view import View

# A request without a token after this many times its predicted time is taken for stuck.
_OVERDUE_FACTOR = 2.0


class RetryBudget:
    """Retries as a share of recent requests, so that retries cannot multiply an overload."""

    __slots__ = ("_burst", "_share", "_tokens")

    def __init__(self, share: float, burst: int) -> None:
        """Starts full: `burst` retries; each request adds `share` of one."""
        self._share = share
        self._burst = float(burst)
        self._tokens = float(burst)

    def on_request(self) -> None:
        """Adds a request's share."""
        tokens = self._tokens + self._share
        self._tokens = tokens if tokens < self._burst else self._burst

    def take(self, *, spare: bool = False) -> bool:
        """Takes one retry; returns False if there is none left.

        Args:
            spare: True leaves half of the burst to failures that are surely the endpoint's.
        """
        if self._tokens < 1.0 + (0.5 * self._burst if spare else 0.0):
            return False
        self._tokens -= 1.0
        return True


class SecondChance:
    """Finds other places for requests; the same for every policy, and can be switched off."""

    def __init__(
        self,
        *,
        view: View,
        limits: SafetyLimits | None,
        budget: RetryBudget,
        max_retries: int,
        rng: np.random.Generator,
        monotonic_s: Callable[[], float],
    ) -> None:
        """Takes its parts; `limits` None switches rescues and retries off."""
        self._view = view
        self.configure(limits, budget, max_retries)
        self._rng = rng
        self._monotonic_s = monotonic_s

    def configure(self, limits: SafetyLimits | None, budget: RetryBudget, max_retries: int) -> None:
        """Takes other limits, and a budget that is full again."""
        self._limits = limits
        self._budget = budget
        self._max_retries = max_retries

    def on_request(self) -> None:
        """Counts a request, which earns a share of a retry."""
        self._budget.on_request()

    def rescue_delay_s(self, job: Job, choice: Choice) -> float:
        """Returns in how many seconds a first dispatch's rescue timer is due, -1 for none."""
        request = job.request
        if self._limits is None or request.tier_pin != NO_TIER_PIN:
            return -1.0
        if request.reward_kind is not RewardKind.HARD:
            return -1.0  # late is better than worse there
        if choice.target.tier_index == 0:
            return -1.0  # nothing is smaller
        limits, slack_s = self._limits, job.deadline_s - self._monotonic_s()
        return safety.rescue_at_s(choice.rescue_s, slack_s, limits.margin, limits.guard_s)

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
        limits, view, now_s = self._limits, self._view, self._monotonic_s()
        if limits is None:  # switched off since the timer was set
            return None
        fleet = view.current_fleet(now_s)
        row = fleet.row.get(target.candidate)
        if row is None:
            return None
        load, request = view.load.current(), job.request
        slack_s, new_tokens = job.deadline_s - now_s, job.new_tokens_at(target.candidate)
        # Load alone never tells that an endpoint hangs; twice the predicted time in silence does.
        silent_s = now_s - job.dispatch_s
        is_overdue = waiting and silent_s > _OVERDUE_FACTOR * choice.predicted_s
        event_left = min(left_tokens, request.event_tokens)
        if not is_overdue and not safety.about_to_miss(
            fleet.arrays, load, row, slack_s, new_tokens, event_left, waiting,
            limits.optimism, request.token_interval_s,
        ):  # fmt: skip
            return None
        desk, own_LC = view.desk(now_s), view.load.own_LC
        # It is about to be cancelled, so it is looked for a place without it.
        with_it = own_LC[:, row].copy()
        own_LC[:, row] -= (1.0, new_tokens if waiting else 0.0, left_tokens)
        # A ramp is for choosing where to send; a request in need takes whatever is open.
        seen = desk.look(_asked(job, slack_s, fleet))
        own_LC[:, row] = with_it
        found = safety.choose_rescue(
            fleet.arrays, seen.allowed_C, row, request.task, slack_s, limits.margin,
            seen.decided.predicted_s_C,
        )  # fmt: skip
        return None if found < 0 else view.fleet.targets[found]

    def retry_target(
        self,
        job: Job,
        target: Target,
        failed: frozenset[tuple[str, str]],
        broken: frozenset[str],
        *,
        may_be_at_fault: bool = False,
    ) -> Target | None:
        """Returns another endpoint of the tier, else the best tier below, else any tier above.

        Args:
            job: the request.
            target: where it failed last.
            failed: the candidates at which it failed.
            broken: the addresses at which it failed by the server's fault; whatever else is served
                there comes last.
            may_be_at_fault: True if the request may be at fault itself: then retries end sooner.

        Returns:
            None if there is none, or if no retry is allowed any more.
        """
        if self._limits is None or job.has_sent or job.retry_count >= self._max_retries:
            return None
        allowed_C, rank = self._ranking(job, target, broken)
        targets = self._view.fleet.targets
        rows = [
            row
            for row in np.flatnonzero(allowed_C).tolist()
            if targets[row].candidate not in failed
        ]
        if not rows or not self._budget.take(spare=may_be_at_fault):
            return None
        return targets[min(rows, key=rank)]

    def alternatives(
        self, job: Job, target: Target, among: Iterable[tuple[str, str]]
    ) -> list[Target]:
        """Returns where a gateway may send a request if its target fails, in the order of retries.

        The gateway has a budget of its own for that.

        Args:
            job: the request.
            target: where it is sent.
            among: the other candidates that could take it.
        """
        if self._limits is None or not self._max_retries:
            return []
        allowed_C, rank = self._ranking(job, target, frozenset({target.address}))
        row_of, targets = self._view.fleet.latest.row, self._view.fleet.targets
        rows = [row_of[candidate] for candidate in among if candidate in row_of]
        return [targets[row] for row in sorted(rows, key=rank) if allowed_C[row]]

    def _ranking(
        self, job: Job, target: Target, broken: frozenset[str]
    ) -> tuple[NDArray[np.bool_], Callable[[int], tuple[float, ...]]]:
        """Returns which candidates may take a request now, and what puts them in order.

        The same tier comes first, then those below, then those above. Those that would miss a hard
        deadline come behind the others: nobody rescues a retry. A candidate that comes back and is
        not due its share comes behind all others, as a request in need takes whatever is open;
        those at a server that is broken come behind these.
        """
        view, now_s = self._view, self._monotonic_s()
        fleet, draw = view.current_fleet(now_s), float(self._rng.random())
        slack_s = job.deadline_s - now_s
        seen = view.desk(now_s).look(_asked(job, slack_s, fleet))
        predicted_s_C, availability_C = seen.decided.predicted_s_C, fleet.arrays.availability_C
        late_s = slack_s if job.request.reward_kind is RewardKind.HARD else math.inf
        targets, tier_count = view.fleet.targets, len(fleet.tiers)

        def rank(row: int) -> tuple[float, ...]:
            other, predicted_s = targets[row], predicted_s_C.item(row)
            step = target.tier_index - other.tier_index
            return (
                other.address in broken,
                predicted_s > late_s,
                availability_C.item(row) <= draw,
                step if step >= 0 else tier_count - step,
                predicted_s,
                row,
            )

        return seen.allowed_C, rank


def _asked(job: Job, slack_s: float, fleet: Fleet) -> Asked:
    """Returns a request that is looked for another place, as if nothing were known of others.

    Candidates that come back are open to it, whatever share of requests is due to them.
    """
    request, seat = job.request, NO_SEAT
    if job.seat is not None:  # nobody stays there any more, but what is cached is
        seat = Seat(fleet.row.get(job.seat, NOWHERE), job.cached_tokens, margin=-1.0)
    query = Query(
        task=request.task,
        slack_s=slack_s,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        event_tokens=request.event_tokens,
        soft_decay_s=0.0,
        mean_prompt_tokens=0.0,
        rate_short_rps=0.0,
        rate_long_rps=0.0,
        state_age_s=0.0,
        draw=0.0,
        token_interval_s=request.token_interval_s,
    )
    return Asked(query, request.quality_floor, request.tier_pin, ramp_draw=0.0, seat=seat)
