"""Holds the tasks' targets: what this process has learned, and what that means for a request.

Of several workers each takes in what the others learned, so that all act on one pressure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router import pressure
from router.pressure import HIGHEST, LATE_AHEAD, RESCUED, Pressures
from router.types import Request, RewardKind
from services.router_inference.job import NOT_HELD, Held, Job, Outcome
from services.router_inference.workers.common_pressure import CLAIMED, SEEN, CommonPressure

CLAIMED_HIGHEST = 1.0
"""Pressure up to which reports of routed requests can raise it: device time at 2.7 times its price.

What a client only claims must not send everybody to the smallest tier.
"""


LONGEST_GAP = 0.25
"""Part of a deadline within which news are taken to have come: workers share more often."""


class TargetHold:
    """The pressures of one process; those of claimed ends are kept apart."""

    def __init__(
        self, targets: Sequence[float], now_s: float, common: CommonPressure | None = None
    ) -> None:
        """Starts at rest, at `now_s` monotonic seconds.

        Args:
            targets: of each task; 0 = none. None at all: nothing is held.
            now_s: the present.
            common: what the workers of a router share; None for a router of one process.
        """
        self._common = common
        self._window_s = 0.0
        self._serves = False
        self._start_s = now_s
        self._has_claims = False
        self._is_cold = True
        self._targets: Any = ()
        self._at_rest_K: list[Held] = []
        self._seen = self._claimed = _at_rest(0, now_s)
        self.configure(targets)

    def configure(self, targets: Sequence[float], names: Sequence[str] = ()) -> None:
        """Takes other targets; tasks that were there keep what was learned of them.

        Args:
            targets: of each task.
            names: of the tasks, by which workers know that they mean the same.
        """
        if self._common is not None:
            self._common.configure(names)
        learned = self._seen, self._claimed
        self._targets = list(targets)
        self._at_rest_K = [Held(target) for target in targets]
        self._seen, self._claimed = (_at_rest(len(targets), old.at_s_1[0]) for old in learned)
        for old, new in zip(learned, (self._seen, self._claimed), strict=True):
            for k in range(min(len(old.pressure_K), len(targets))):
                new.pressure_K[k], new.ends_K[k] = old.pressure_K[k], old.ends_K[k]

    def begin(self, now_s: float) -> None:
        """Tells that the process serves from now on: it knows nothing of the traffic yet.

        A worker knows what its siblings do, and begins where they stand.
        """
        self._start_s, self._is_cold = now_s, True
        stand = self._common.newest(now_s) if self._common is not None else None
        if stand is not None:
            self._start_s, self._window_s = stand.start_s, stand.window_s
            for kind, own in ((SEEN, self._seen), (CLAIMED, self._claimed)):
                theirs_K = stand.pressure_NK[kind]
                count = min(len(own.pressure_K), len(theirs_K))
                own.pressure_K[:count] = theirs_K[:count]
                own.at_s_1[0] = stand.at_s
            self._has_claims = any(self._claimed.pressure_K)
        self._serves = True
        self.share(now_s)

    def share(self, now_s: float) -> None:
        """Takes in what other workers learned, and shows them where this one stands.

        Call it now and then, for the sake of a worker without requests and of one that starts.
        """
        # Before it serves it stands nowhere, and must not be taken for one that does.
        if self._common is not None and self._serves and len(self._targets):
            window_s = self._window_s = self._window_s or self._common.window_s()
            if window_s:  # else there was no request yet
                self._listen(now_s, window_s)
            self._show()

    def _show(self) -> None:
        if self._common is not None:
            self._common.show(self._start_s, self._window_s, self._seen, self._claimed)

    def _listen(self, now_s: float, window_s: float) -> None:
        """Takes in what other workers did."""
        common = self._common
        news = common.look(now_s, window_s) if common is not None else None
        if common is None or news is None:
            return
        self._has_claims |= news.has_claims
        for kind, each, highest in (
            (SEEN, self._seen, HIGHEST),
            (CLAIMED, self._claimed, CLAIMED_HIGHEST),
        ):
            if kind == CLAIMED and not self._has_claims:
                continue
            # What came since is taken for the middle of that time, when it did not come at once:
            # to there the pressure fell by the shares of before, from there by those of now.
            gap_s = min(max(0.0, now_s - float(each.at_s_1[0])), LONGEST_GAP * window_s)
            middle_s = now_s - 0.5 * gap_s
            pressure.relax(each, middle_s, window_s, self._targets)
            rise_K = news.rise_NK[kind]
            own_K = common.own_ends(kind, now_s, window_s)
            ends_K = [own + others for own, others in zip(own_K, news.ends_NK[kind], strict=True)]
            whole = sum(rise_K)
            if whole:
                room = max(0.0, highest - pressure.total(each.pressure_K))
                # Of what does not fit, tasks give up alike: who came first nobody knows any more.
                part = min(1.0, room / whole)
                for k, by in enumerate(rise_K[: len(each.pressure_K)]):
                    each.pressure_K[k] += part * by
            count = min(len(ends_K), len(each.ends_K))
            each.ends_K[:count] = ends_K[:count]
            pressure.relax(each, now_s, window_s, self._targets)
            each.ends_K[:count] = ends_K[:count]

    def pressure(self) -> float:
        """Returns the present pressure, as of the last request."""
        return max(pressure.total(self._seen.pressure_K), pressure.total(self._claimed.pressure_K))

    def held(self, request: Request, now_s: float) -> Held:
        """Returns what targets mean for a request that is to be decided for."""
        if not self._holds(request):
            return NOT_HELD
        window_s = request.slack_s
        if self._common is not None:
            self._window_s = window_s
            self._listen(now_s, window_s)
        is_claimed = self._has_claims and any(self._claimed.pressure_K)
        if not (self._is_cold or is_claimed or any(self._seen.pressure_K)):
            return self._at_rest_K[request.task]  # so it is for most requests
        felt = pressure.felt(self._seen, now_s, window_s, self._targets)
        if self._has_claims:
            claimed = pressure.felt(self._claimed, now_s, window_s, self._targets)
            felt = max(felt, claimed)
        age_s = now_s - self._start_s
        self._is_cold = age_s < pressure.LONGEST_COLD_S
        return Held(self._targets[request.task], felt, pressure.is_small(felt, age_s, window_s))

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
        task, common = request.task, self._common
        if common is not None:
            self._window_s = request.slack_s
            self._listen(now_s, request.slack_s)
        pressure.learn(
            pressures, now_s, request.slack_s, self._targets, task, ended, missed, highest
        )
        if common is not None:
            kind = SEEN if pressures is self._seen else CLAIMED
            # Without the limit of the pressure, which each finds for itself.
            by = pressure.step(pressures, missed)
            common.add(kind, task, by, ended, now_s, request.slack_s)
            if by:
                self._show()


def _at_rest(count: int, now_s: float) -> Pressures:
    # Lists are read faster than arrays in plain Python, and the kernels only index them.
    lists: Any = [0.0] * count, [0.0] * count, [now_s]
    return Pressures(*lists)
