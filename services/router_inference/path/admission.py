"""Admission: refuses at once what would be late everywhere, and learns how cautious to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from router import safety
from router.safety import Caution, SafetyLimits
from router.types import Request, RewardKind
from services.common.errors import ResourceExhaustedError
from services.router_inference.job import NOT_HELD, Held, Job, Outcome, Standing

REASON_DEADLINE = "DEADLINE_NOT_REACHABLE"
MOST_CLAIMED_FACTOR = 1.0
"""Factor that reports of routed requests can raise admission's to: predictions taken as they are.

What a router sees itself may raise it further.
"""


def is_hopeless(job: Job) -> bool:
    """Returns whether a request was refused for what was under way, not for its deadline alone."""
    return job.reason == REASON_DEADLINE and not job.is_impossible


class Admission:
    """Admission of one process. Soft deadlines are never refused and teach nothing."""

    def __init__(
        self,
        limits: SafetyLimits | None,
        monotonic_s: Callable[[], float],
        lag_s: Callable[[], float] = lambda: 0.0,
        latency_ratio: Callable[[float], float] = lambda _: 1.0,
    ) -> None:
        """Starts at rest.

        Args:
            limits: how far predictions are trusted; None switches admission off.
            monotonic_s: tells the time.
            lag_s: tells how late the process will run what is due, seconds: time that no
                prediction has in it.
            latency_ratio: tells the recent mean of observed over predicted latency at a time.
        """
        self.limits = limits
        self._lag_s = lag_s
        self._latency_ratio = latency_ratio
        self._monotonic_s = monotonic_s
        self._window_s = 0.0
        self.caution = Caution()
        self._claimed = Caution()

    def factor(self, held: Held = NOT_HELD) -> float:
        """Returns the factor on predictions at present; 0 if nothing is ever refused.

        Args:
            held: what targets mean for the request.
        """
        if self.limits is None:
            return 0.0
        now_s = self._monotonic_s()
        most, claimed = self.caution, self._claimed
        # At rest there is nothing to relax; so it is nearly always.
        if most.ended or most.raised:
            safety.relax(most, now_s, self._window_s)
        if claimed.ended or claimed.raised:
            safety.relax(claimed, now_s, self._window_s)
            if claimed.raised > most.raised:
                most = claimed
        optimism, pessimism = self.limits.optimism, self.limits.pessimism
        if not held.has_target:
            return safety.admission_factor(most, optimism)
        is_floored = held.is_floored
        ratio = self._latency_ratio(now_s) if is_floored else 1.0
        return safety.target_factor(most, optimism, pessimism, is_floored, ratio)

    def terms(self, request: Request, held: Held) -> tuple[float, float]:
        """Returns what `router.safety.admit` goes by for a request: its slack and the factor.

        The factor is 0 for what is never refused.
        """
        if self.limits is None or request.reward_kind is not RewardKind.HARD:
            return request.slack_s, 0.0
        self._window_s = request.slack_s
        return request.slack_s - self._lag_s(), self.factor(held)

    def is_impossible(self, slack_s: float, idle_s: float) -> bool:
        """Returns whether what was just refused would be so with nothing under way, too.

        Then its deadline is to blame and not the load, so nobody learns from it, and it is no
        traffic: else one caller with such deadlines would have all others take smaller tiers, or
        less than they ask for.

        Args:
            slack_s: time left, seconds.
            idle_s: least predicted latency with nothing under way, seconds.
        """
        limits = self.limits
        return limits is not None and not safety.in_reach(idle_s, slack_s, limits.optimism)

    def refuse(
        self,
        slack_s: float,
        factor: float,
        least_s: float,
        standing: Standing,
        *,
        is_impossible: bool = False,
    ) -> NoReturn:
        """Refuses a request for which no candidate was in reach.

        Args:
            slack_s: time left, seconds, as it was counted.
            factor: on predictions, that of its class in it.
            least_s: least predicted latency over the candidates allowed, seconds.
            standing: what its priority class meant for it.
            is_impossible: with nothing under way it would be refused, too.

        Raises:
            ResourceExhaustedError: always.
        """
        if not is_impossible:
            self.caution.refused_s = self._monotonic_s()
        counted = f"counted {factor:.2f} times"
        if standing.log_caution:
            counted += f" for priority {standing.priority.label}"
        raise ResourceExhaustedError(
            REASON_DEADLINE,
            f"{slack_s:.3f} s until the deadline",
            f"{least_s:.3f} s predicted on the fastest tier allowed, {counted}",
            retry_after_s=max(0.05, least_s - slack_s),
            metadata={"factor": f"{factor:.3f}"},
        )

    def on_end(self, job: Job) -> None:
        """Learns from the end of an admitted request.

        Late ones count as misses, rescued ones by how they ended. What a client cancelled or an
        endpoint failed says nothing about predictions, nor does what was sent again after that;
        nor, where a target is held, what had another tier to go to: smaller tiers come before
        refusals.
        Ends that are only reported are learned from apart, up to `MOST_CLAIMED_FACTOR`.
        """
        served = job.outcome is Outcome.ON_TIME or job.outcome is Outcome.LATE
        if self.limits is None or not served or job.retry_count:
            return
        if job.request.reward_kind is not RewardKind.HARD:
            return
        if job.held.has_target and not job.held.is_floored:
            return
        caution, most = self.caution, self.limits.pessimism
        if job.is_routed:
            caution, most = self._claimed, min(most, MOST_CLAIMED_FACTOR)
        safety.learn_end(
            caution, self._monotonic_s(), job.request.slack_s, job.outcome is Outcome.LATE,
            self.limits.optimism, most,
        )  # fmt: skip
