"""Holds the tasks' targets: what this process has learned, and what that means for a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router import pressure
from router.pressure import HIGHEST, LATE_AHEAD, RESCUED, Pressures
from router.types import Request, RewardKind
from services.router_inference.job import NOT_HELD, Held, Job, Outcome

CLAIMED_HIGHEST = 1.0
"""Pressure up to which reports of routed requests can raise it: device time at 2.7 times its price.

What a client only claims must not send everybody to the smallest tier.
"""


class TargetHold:
    """The pressures of one process; those of claimed ends are kept apart."""

    def __init__(self, targets: Sequence[float], now_s: float) -> None:
        """Starts at rest, at `now_s` monotonic seconds.

        Args:
            targets: of each task; 0 = none. None at all: nothing is held.
            now_s: the present.
        """
        self._start_s = now_s
        self._has_claims = False
        self._targets: Any = ()
        self._seen = self._claimed = _at_rest(0, now_s)
        self.configure(targets)

    def configure(self, targets: Sequence[float]) -> None:
        """Takes other targets; tasks that were there keep what was learned of them."""
        learned = self._seen, self._claimed
        self._targets = list(targets)
        self._seen, self._claimed = (_at_rest(len(targets), old.at_s_1[0]) for old in learned)
        for old, new in zip(learned, (self._seen, self._claimed), strict=True):
            for k in range(min(len(old.pressure_K), len(targets))):
                new.pressure_K[k], new.ends_K[k] = old.pressure_K[k], old.ends_K[k]

    def begin(self, now_s: float) -> None:
        """Tells that the process serves from now on: it knows nothing of the traffic yet."""
        self._start_s = now_s

    def pressure(self) -> float:
        """Returns the present pressure, as of the last request."""
        return max(pressure.total(self._seen.pressure_K), pressure.total(self._claimed.pressure_K))

    def held(self, request: Request, now_s: float) -> Held:
        """Returns what targets mean for a request that is to be decided for."""
        if not self._holds(request):
            return NOT_HELD
        window_s = request.slack_s
        felt = pressure.felt(self._seen, now_s, window_s, self._targets)
        if self._has_claims:
            claimed = pressure.felt(self._claimed, now_s, window_s, self._targets)
            felt = max(felt, claimed)
        return Held(
            self._targets[request.task],
            felt,
            pressure.is_small(felt, now_s - self._start_s, window_s),
        )

    def on_late_ahead(self, job: Job, now_s: float) -> None:
        """Learns that a choice is predicted to be late."""
        self._learn(job, now_s, 0.0, LATE_AHEAD)

    def on_rescue(self, job: Job, now_s: float) -> None:
        """Learns that a request had to be rescued."""
        self._learn(job, now_s, 0.0, RESCUED)

    def on_end(self, job: Job, now_s: float, *, is_hopeless: bool) -> None:
        """Learns from an end; what a client cancelled or an endpoint failed says nothing.

        Args:
            job: the request.
            now_s: the present, monotonic seconds.
            is_hopeless: it was refused, since it would have been late everywhere.
        """
        if job.outcome is Outcome.ON_TIME:
            self._learn(job, now_s, 1.0, 0.0)
        elif is_hopeless or job.outcome is Outcome.LATE:
            self._learn(job, now_s, 1.0, 1.0)

    def _holds(self, request: Request) -> bool:
        task = request.task
        return (
            task < len(self._targets)
            and self._targets[task] > 0.0
            and request.reward_kind is RewardKind.HARD
        )

    def _learn(self, job: Job, now_s: float, ended: float, missed: float) -> None:
        request = job.request
        if not self._holds(request):
            return
        pressures, highest = self._seen, HIGHEST
        if job.is_routed and job.choice is not None and ended:
            pressures, highest = self._claimed, CLAIMED_HIGHEST
            self._has_claims = True
        pressure.learn(
            pressures, now_s, request.slack_s, self._targets, request.task, ended, missed, highest
        )


def _at_rest(count: int, now_s: float) -> Pressures:
    # Lists are read faster than arrays in plain Python, and the kernels only index them.
    lists: Any = [0.0] * count, [0.0] * count, [now_s]
    return Pressures(*lists)
