"""What the safety net does for a request that was dispatched: rescue it, or retry it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import Any

import numpy as np

from router import kernels, safety
from router.fleet import Fleet
from router.ledger import LoadArrays
from router.policy import observe
from router.safety import SafetyLimits
from router.types import NO_TIER_PIN, NoCandidateError, RewardKind
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
        self._limits = limits
        self._budget = budget
        self._max_retries = max_retries
        self._rng = rng
        self._monotonic_s = monotonic_s

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
        observation = choice.observation
        least_s = safety.least_rescue_s(
            observation.fleet.lists, observation.load, observation.allowed_C,
            choice.decision.action, request.prompt_tokens, request.event_tokens,
            _scratch(observation.fleet),
        )  # fmt: skip
        slack_s = job.deadline_s - self._monotonic_s()
        return safety.rescue_at_s(least_s, slack_s, self._limits.margin, self._limits.guard_s)

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
        assert limits is not None
        fleet = view.current_fleet(now_s)
        row = fleet.row.get(target.candidate)
        if row is None:
            return None
        load, request = view.load.current(), job.request
        slack_s = job.deadline_s - now_s
        # Load alone never tells that an endpoint hangs; twice the predicted time in silence does.
        silent_s = now_s - job.dispatch_s
        is_overdue = waiting and silent_s > _OVERDUE_FACTOR * choice.predicted_s
        event_left = min(left_tokens, request.event_tokens)
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
        allowed_C: Any = [False] * fleet.candidate_count
        # A ramp is for choosing where to send; a request in need takes whatever is open.
        kernels.allowed_mask(
            fleet.lists, request.task, request.quality_floor, request.tier_pin, 0.0, allowed_C
        )
        found = safety.choose_rescue(
            fleet.lists, without, allowed_C, row, request.task, slack_s,
            request.prompt_tokens, request.event_tokens, limits.margin, _scratch(fleet),
        )  # fmt: skip
        return None if found < 0 else view.fleet.targets[found]

    def retry_target(
        self,
        job: Job,
        target: Target,
        failed: frozenset[tuple[str, str]],
        *,
        may_be_at_fault: bool = False,
    ) -> Target | None:
        """Returns another endpoint of the tier, else the best tier below, else any tier above.

        Returns None if there is none, or if no retry is allowed any more; for a request that may be
        at fault itself that is sooner.
        """
        if self._limits is None or job.has_sent or job.retry_count >= self._max_retries:
            return None
        view, now_s = self._view, self._monotonic_s()
        fleet = view.current_fleet(now_s)
        load, signals = view.load.current(), view.traffic.signals(now_s)
        excluded_C = [key in failed for key in view.fleet.candidates]
        try:
            observation = observe(fleet, load, job.request, signals, self._rng, excluded_C)
        except NoCandidateError:
            return None
        predicted_s_C, request = _scratch(fleet), job.request
        kernels.predict_latency_s(
            fleet.lists, load, request.prompt_tokens, request.event_tokens, predicted_s_C
        )
        rows = compress(range(fleet.candidate_count), observation.allowed_C)

        def rank(row: int) -> tuple[int, float]:
            step = target.tier_index - view.fleet.targets[row].tier_index
            # The tier itself, then downwards, then upwards.
            return step if step >= 0 else len(fleet.tiers) - step, float(predicted_s_C[row])

        if not self._budget.take(spare=may_be_at_fault):
            return None
        return view.fleet.targets[min(rows, key=rank)]


def _scratch(fleet: Fleet) -> Any:
    """Returns room for a number per candidate, in a list (see `LoadArrays`)."""
    return [0.0] * fleet.candidate_count
