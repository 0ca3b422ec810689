"""What the safety net does for a request that was dispatched: rescue it, or retry it elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from router import safety
from router.decision import Board
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
        found = self._in_order(job, target, failed, broken)
        if not found or not self._budget.take(spare=may_be_at_fault):
            return None
        return found[0]

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
        fleet, seen, draw, most_s = self._look(job)
        targets, availability_C = self._view.fleet.targets, fleet.arrays.availability_C
        found = []
        # As `_in_order`, but mostly a few: one by one that takes a quarter of the time.
        for candidate in among:
            row = fleet.row.get(candidate, -1)
            if row < 0 or not seen.allowed_C.item(row):
                continue
            step = target.tier_index - targets[row].tier_index
            rank = step if step >= 0 else len(fleet.tiers) - step
            is_broken = targets[row].address == target.address
            is_spared = availability_C.item(row) <= draw
            predicted_s = seen.decided.predicted_s_C.item(row)
            found.append((is_broken, predicted_s > most_s, is_spared, rank, predicted_s, row))
        return [targets[row] for *_, row in sorted(found)]

    def _in_order(
        self,
        job: Job,
        target: Target,
        failed: frozenset[tuple[str, str]],
        broken: frozenset[str],
    ) -> list[Target]:
        """Returns usable targets, those that failed aside: tier itself, downwards, upwards.

        Those that would miss a hard deadline come behind the others: nobody rescues a retry.
        A candidate that comes back and is not due its share comes behind all others, as a request
        in need takes whatever is open; those at a server that is broken come behind these.
        """
        fleet, seen, draw, most_s = self._look(job)
        for candidate in failed:
            if candidate in fleet.row:
                seen.allowed_C[fleet.row[candidate]] = False
        rows_R, targets = np.flatnonzero(seen.allowed_C), self._view.fleet.targets
        is_broken_R = [targets[row].address in broken for row in rows_R.tolist()]
        is_spared_R = fleet.arrays.availability_C[rows_R] <= draw
        step_R = target.tier_index - fleet.arrays.tier_C[rows_R]
        rank_R = np.where(step_R >= 0, step_R, len(fleet.tiers) - step_R)
        predicted_s_R = seen.decided.predicted_s_C[rows_R]
        is_late_R = predicted_s_R > most_s
        order_R = np.lexsort(
            (predicted_s_R, rank_R, is_spared_R, is_late_R, np.array(is_broken_R, bool))
        )
        return [targets[row] for row in rows_R[order_R].tolist()]

    def _look(self, job: Job) -> tuple[Fleet, Board, float, float]:
        """Returns the fleet, what policies see of a request now, its draw for ramps, and its time.

        The last is what is left to its deadline, seconds; infinite where late is better than worse.
        """
        view, now_s = self._view, self._monotonic_s()
        fleet, draw = view.current_fleet(now_s), float(self._rng.random())
        slack_s = job.deadline_s - now_s
        seen = view.desk(now_s).look(_asked(job, slack_s, fleet))
        is_hard = job.request.reward_kind is RewardKind.HARD
        return fleet, seen, draw, slack_s if is_hard else math.inf


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
