"""A policy on trial beside the one in force: asked about past decisions, then for a share of all.

In its first stage, shadow, it is asked in the background about decisions that were taken, which the
ring of explanations keeps: nothing is added to a request's path. In its second, canary, it decides
a share of the requests, drawn by chance, and as many others are what it is compared with. What
came of both is measured by one ruler (`router.ruler`) in the background. In its third, switchback,
it decides all requests of some periods and none of others, as the trainer says. A trial that breaks
a limit is stopped here at once, whatever becomes of the trainer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from router.bound import Bind, Rule
from router.explanation import Explainer
from router.guard import Guard
from router.policy import Policy
from router.ruler import Ruler
from services.common.clock import Clock
from services.common.log import Logger
from services.router_inference.job import Arm, Job, Outcome
from services.router_inference.path.admission import is_hopeless
from services.router_inference.policy.slot import PolicySlot, Promoted, RefusedPolicyError
from services.router_inference.policy.trial_counts import (
    TrialSeen,
    TrialTold,
    reported,
    row_of,
)
from services.router_inference.policy.trial_work import (
    Canary,
    Ended,
    Shadow,
    Switchback,
    TrialLimits,
)
from services.router_inference.policy.watch import PolicyWatch
from services.router_inference.records.explanations import Explanations
from services.router_inference.records.metrics import RouterMetrics
from services.router_inference.workers.siblings import NoSiblings

_ENDED = (Outcome.ON_TIME, Outcome.LATE, Outcome.FAILED)
_TICK_S = 0.1
_MOST_PER_TICK = 500
_MOST_WAITING = 10_000


class Tried(NamedTuple):
    """What the trainer wants tried.

    Attributes:
        rollout: number of the rollout; 0 = nothing.
        is_canary: it decides.
        share: of the requests, 0 to 0.5.
        policy: the policy.
        period: of a switchback, from 1; 0 in other stages.
        decides_all: it decides all requests of that period.
        settle_s: requests that arrive within so long after its beginning do not count, seconds.
    """

    rollout: int
    is_canary: bool
    share: float
    policy: Promoted
    period: int = 0
    decides_all: bool = False
    settle_s: float = 0.0

    @property
    def stage(self) -> str:
        """Name of its stage."""
        if self.period:
            return "switchback"
        return "canary" if self.is_canary else "shadow"


class Trial:
    """What is on trial in one process; nothing at first.

    Attributes:
        is_deciding: True while a share of the requests is drawn for a canary.
        limits: what stops it.
    """

    def __init__(
        self,
        *,
        slot: PolicySlot,
        explanations: Explanations,
        watch: PolicyWatch,
        siblings: NoSiblings,
        bind: Bind,
        limits: TrialLimits,
        chance: Callable[[], float],
        metrics: RouterMetrics,
        clock: Clock,
        log: Logger,
    ) -> None:
        """Takes its parts; `chance` draws a number of [0, 1)."""
        self._slot = slot
        self._watch = watch
        self._explanations = explanations
        self._siblings = siblings
        self._explainer = Explainer(bind)
        self._ruler = Ruler(bind)
        self.limits = limits
        self._chance = chance
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self.is_deciding = False
        self._tried: Tried | None = None
        self._shadow: Shadow | None = None
        self._canary: Canary | None = None
        self._switch: Switchback | None = None
        self._is_suspended = False
        self._problem = self._detail = ""
        self._ended: deque[Ended] = deque(maxlen=_MOST_WAITING)
        self._began_s = 0.0

    # -- on the path, where a canary is under way

    def arm(self) -> Arm | None:
        """Draws the arm of a request; None if it is in neither.

        By nothing that a client says: it could have all its requests decided by the canary.
        """
        tried = self._tried
        if tried is None or self._slot.is_pinned:
            return None
        if tried.period:
            return Arm.CANARY if tried.decides_all else Arm.CONTROL
        place = self._chance()
        if place < tried.share:
            return Arm.CANARY
        return Arm.CONTROL if place < 2.0 * tried.share else None

    @property
    def guard(self) -> Guard:
        """What decides for the requests of the policy on trial."""
        found = self._canary or self._switch
        assert found is not None
        return found.guard

    def on_end(self, job: Job, reward: float) -> None:
        """Takes in the end of a request of either arm, to be measured in the background.

        What a client cancelled or only claims says nothing.
        """
        choice = job.choice
        if not self.is_deciding or job.is_routed:
            return
        if self._switch is not None:
            is_refused = job.outcome is Outcome.REFUSED and is_hopeless(job)
            if is_refused or (choice is not None and job.outcome in _ENDED):
                self._switch.on_end(job, reward, self._watch.slow_s)
            return
        if choice is None:
            return
        if job.outcome in (Outcome.CANCELLED, Outcome.INVALID) or choice.start_s < self._began_s:
            return
        is_given_up = job.is_rescued or job.retry_count > 0
        is_missed = is_given_up or job.outcome is not Outcome.ON_TIME
        earned = 0.0 if is_given_up else reward
        self._ended.append(Ended(choice, job.arm is Arm.CANARY, earned, is_missed))

    # -- what the trainer wants

    def take(self, tried: Tried) -> None:
        """Begins, goes on with, or ends a trial."""
        if not tried.rollout:
            self.end()
            return
        before, self._tried = self._tried, tried
        if before is not None and _is_same(before, tried):
            self._is_suspended = False
            self.is_deciding = tried.is_canary and not self._problem
            self._turn(tried)
            return
        self._begin()
        try:
            policy = self._slot.made(tried.policy)
        except RefusedPolicyError as error:
            self._stop(error.reason, str(error))
            return
        if tried.period:
            self._switch = Switchback(self._guard_of(policy), self.limits, self._metrics)
            self._turn(tried)
        elif tried.is_canary:
            self._canary = Canary(self._guard_of(policy), self._ruler, self._metrics)
        else:
            self._shadow = Shadow(
                Rule.of(policy),
                self._explainer,
                self._ruler,
                self._clock.monotonic_s,
                self._metrics,
                self._log,
            )
        self.is_deciding = tried.is_canary
        names = self._names()
        self._log.info("trial", **names, share=tried.share)
        labels = (names["policy"], names["policy_version"], names["stage"])
        self._metrics.trial_info.labels(*map(str, labels)).set(1.0)

    def _turn(self, tried: Tried) -> None:
        if self._switch is not None:
            now_s = self._clock.monotonic_s()
            self._switch.turn(tried.period, tried.decides_all, tried.settle_s, now_s)

    def end(self) -> None:
        """Ends what is on trial, keeping nothing."""
        if self._tried is not None:
            self._log.info("trial_ended", **self._names())
        self._tried = None
        self._begin()

    def suspend(self) -> None:
        """Lets the trial rest, since nobody watches it; what it has seen stays."""
        self.is_deciding = False
        self._is_suspended = True

    def seen(self) -> TrialSeen | None:
        """Returns what this process saw; None if nothing is on trial, or something is pinned."""
        tried = self._tried
        if tried is None or self._slot.is_pinned:
            return None
        return TrialSeen(
            tried.rollout,
            tried.is_canary,
            self._problem,
            self._detail,
            None if self._shadow is None else self._shadow.counts,
            None if self._canary is None else self._canary.counts,
            None if self._switch is None else self._switch.counts,
        )

    def told(self) -> TrialTold | None:
        """Returns what the router reports: what all its workers saw."""
        seen = self.seen()
        return None if seen is None else reported(seen, self._siblings.other_trials())

    # -- in the background

    async def run(self) -> None:
        """Asks and measures, for ever, within a share of one core."""
        while True:
            await self._clock.sleep(_TICK_S)
            if not self._siblings.is_alone:
                self._siblings.show_trial(row_of(self.seen()))
            if self._tried is None or self._problem or self._is_suspended:
                continue
            start_s = self._clock.monotonic_s()
            self.work(start_s + self.limits.cpu_share * _TICK_S)
            self._metrics.trial_seconds.inc(self._clock.monotonic_s() - start_s)

    def work(self, until_s: float) -> None:
        """Does what there is, until a moment; the rest waits, or is left out."""
        if self._canary is not None:
            for _ in range(min(_MOST_PER_TICK, len(self._ended))):
                self._canary.measure(self._ended.popleft())
                if self._clock.monotonic_s() >= until_s:
                    break
            problem = self._canary.problem(self.limits)
            if problem is not None:
                self._stop(*problem)
        elif self._switch is not None:
            problem = self._switch.problem(self._watch.in_force())
            if problem is not None:
                self._stop(*problem)
        elif self._shadow is not None:
            for choice in self._explanations.newest(self._shadow.last_sequence, _MOST_PER_TICK):
                if choice.start_s < self._began_s:
                    break
                self._shadow.ask(choice)
                if self._clock.monotonic_s() >= until_s:
                    break

    def _guard_of(self, policy: Policy) -> Guard:
        return Guard(policy=policy, fallback=self._slot.guard.fallback)

    def _stop(self, reason: str, detail: str) -> None:
        self.is_deciding = False
        self._problem, self._detail = reason, detail[:200]
        self._metrics.trial_stops.labels(reason=reason).inc()
        self._log.warning("trial_stopped", reason=reason, detail=detail, **self._names())
        self._metrics.trial_info.clear()

    def _begin(self) -> None:
        """Forgets what was on trial before."""
        self.is_deciding = self._is_suspended = False
        self._shadow = self._canary = self._switch = None
        self._problem = self._detail = ""
        self._ended.clear()
        self._began_s = self._clock.monotonic_s()
        self._metrics.trial_info.clear()

    def _names(self) -> dict[str, str | int]:
        tried = self._tried
        assert tried is not None
        return {
            "rollout": tried.rollout,
            "policy": tried.policy.name[:64],
            "policy_version": tried.policy.version[:64],
            "stage": tried.stage,
        }


def _is_same(before: Tried, now: Tried) -> bool:
    """Returns whether what was seen before goes on counting."""
    return (before.rollout, before.stage, before.policy.version) == (
        now.rollout,
        now.stage,
        now.policy.version,
    )
