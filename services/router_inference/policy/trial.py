"""A policy on trial beside the one in force: asked about past decisions, then for a share of all.

In its first stage, shadow, it is asked in the background about decisions that were taken, which the
ring of explanations keeps: nothing is added to a request's path. In its second, canary, it decides
a share of the requests, drawn by their ids, and as many others are what it is compared with. What
came of both is measured by one ruler (`router.ruler`) in the background. A trial that breaks a
limit is stopped here at once, whatever becomes of the trainer.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import NamedTuple

from router.bound import Bind, Rule
from router.explanation import Explainer
from router.guard import FallbackReason, Guard
from router.ruler import Ruler
from router.sequential import Arms, bounds_of
from services.common.clock import Clock
from services.common.log import Logger
from services.router_inference.job import Arm, Choice, Job, Outcome
from services.router_inference.policy.slot import PolicySlot, Promoted, RefusedPolicyError
from services.router_inference.policy.trial_counts import (
    REASON_FAULTS,
    REASON_MISSES,
    REASON_SLOW,
    ArmCounts,
    CanaryCounts,
    ShadowCounts,
    TrialSeen,
    TrialTold,
    reported,
    row_of,
)
from services.router_inference.records.accounts import RouterMetrics
from services.router_inference.records.explanations import Explanations
from services.router_inference.workers.siblings import NoSiblings

_TICK_S = 0.1
_MOST_PER_TICK = 500
_MOST_WAITING = 10_000
_MOST_FAULTS = 3
_LEAST_TIMED = 30
_SLOWER = 4.0
"""A canary is too slow only if it takes so many times as long as the policy in force, too."""
_MISS_ALPHA = 0.001
"""Chance that a canary as good as its control is stopped for its misses, in each window."""
_MISS_WINDOW = 1_000
"""Requests of both arms after which misses are counted anew, so that new ones show soon."""
_FAULTS = (
    FallbackReason.NOT_FINITE.value,
    FallbackReason.POLICY_ERROR.value,
    FallbackReason.BAD_ACTION.value,
)


class Tried(NamedTuple):
    """What the trainer wants tried.

    Attributes:
        rollout: number of the rollout; 0 = nothing.
        is_canary: it decides a share.
        share: of the requests, 0 to 0.5.
        policy: the policy.
    """

    rollout: int
    is_canary: bool
    share: float
    policy: Promoted


class TrialLimits(NamedTuple):
    """What stops a trial.

    Attributes:
        cpu_share: share of one core that a trial may use in the background.
        misses: by how much its share of missed requests may exceed its control's.
        decision_s: mean time of a decision, seconds.
    """

    cpu_share: float
    misses: float
    decision_s: float


class _Ended(NamedTuple):
    choice: Choice
    is_canary: bool
    reward: float
    is_missed: bool


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
        siblings: NoSiblings,
        bind: Bind,
        limits: TrialLimits,
        max_state_age_s: float,
        metrics: RouterMetrics,
        clock: Clock,
        log: Logger,
    ) -> None:
        """Takes its parts; `max_state_age_s` is that of the guard, seconds."""
        self._slot = slot
        self._explanations = explanations
        self._siblings = siblings
        self._explainer = Explainer(bind)
        self._ruler = Ruler(bind)
        self.limits = limits
        self._max_state_age_s = max_state_age_s
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self.is_deciding = False
        self._tried: Tried | None = None
        self._rule: Rule | None = None
        self._guard: Guard | None = None
        self._is_suspended = False
        self._problem = self._detail = ""
        self._ended: deque[_Ended] = deque(maxlen=_MOST_WAITING)
        self._last_sequence, self._began_s, self._salt = 0, 0.0, b""
        self._shadow, self._canary = ShadowCounts(), CanaryCounts()
        self._misses = Arms(0.0, 1.0)

    # -- on the path, where a canary is under way

    def arm(self, request_id: str) -> Arm | None:
        """Returns the arm of a request; None if it is in neither."""
        tried = self._tried
        if tried is None or self._slot.is_pinned:
            return None
        digest = hashlib.blake2b(request_id.encode(), digest_size=8, key=self._salt).digest()
        place = int.from_bytes(digest, "little") / 2.0**64
        if place < tried.share:
            return Arm.CANARY
        return Arm.CONTROL if place < 2.0 * tried.share else None

    @property
    def guard(self) -> Guard:
        """What decides for the requests of the canary."""
        assert self._guard is not None
        return self._guard

    def on_end(self, job: Job, reward: float) -> None:
        """Takes in the end of a request of either arm, to be measured in the background.

        What a client cancelled or only claims says nothing.
        """
        choice = job.choice
        if not self.is_deciding or choice is None or job.is_routed:
            return
        if job.outcome in (Outcome.CANCELLED, Outcome.INVALID) or choice.start_s < self._began_s:
            return
        is_given_up = job.is_rescued or job.retry_count > 0
        is_missed = is_given_up or job.outcome is not Outcome.ON_TIME
        earned = 0.0 if is_given_up else reward
        self._ended.append(_Ended(choice, job.arm is Arm.CANARY, earned, is_missed))

    # -- what the trainer wants

    def take(self, tried: Tried) -> None:
        """Begins, goes on with, or ends a trial."""
        if not tried.rollout:
            self.end()
            return
        before = self._tried
        self._tried = tried
        if before is not None and _is_same(before, tried):
            self._is_suspended = False
            self.is_deciding = tried.is_canary and not self._problem
            return
        self._begin(tried.policy.version)
        try:
            policy = self._slot.made(tried.policy)
        except RefusedPolicyError as error:
            self._stop(error.reason, str(error))
            return
        self._rule = Rule.of(policy)
        self._guard = Guard(
            policy=policy,
            fallback=self._slot.guard.fallback,
            max_state_age_s=self._max_state_age_s,
        )
        self.is_deciding = tried.is_canary
        self._log.info("trial", **self._names(), share=tried.share)
        self._show()

    def end(self) -> None:
        """Ends what is on trial, keeping nothing."""
        if self._tried is not None:
            self._log.info("trial_ended", **self._names())
        self._tried = None
        self._begin("")

    def suspend(self) -> None:
        """Lets the trial rest, since nobody watches it; what it has seen stays."""
        self.is_deciding = False
        self._is_suspended = True

    def seen(self) -> TrialSeen | None:
        """Returns what this process saw; None if nothing is on trial, or something is pinned."""
        tried = self._tried
        if tried is None or self._slot.is_pinned:
            return None
        shadow, canary = (None, self._canary) if tried.is_canary else (self._shadow, None)
        return TrialSeen(tried.rollout, self._problem, self._detail, shadow, canary)

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
        assert self._tried is not None
        if self._tried.is_canary:
            for _ in range(min(_MOST_PER_TICK, len(self._ended))):
                self._measure(self._ended.popleft())
                if self._clock.monotonic_s() >= until_s:
                    break
            self._check()
            return
        for choice in self._explanations.newest(self._last_sequence, _MOST_PER_TICK):
            self._ask(choice)
            if self._clock.monotonic_s() >= until_s:
                break

    def _ask(self, choice: Choice) -> None:
        """Asks the policy on trial about a decision, and the one in force again beside it."""
        assert self._rule is not None
        inputs, counts = choice.inputs, self._shadow
        self._last_sequence = max(self._last_sequence, choice.sequence)
        if choice.start_s < self._began_s or inputs.asked.tier_pin >= 0:
            return
        is_first = counts.decisions == 0
        start_s = self._clock.monotonic_s()
        try:
            action, board = self._explainer.decide_by(inputs, self._rule)
            is_fault = not (action >= 0 and bool(board.allowed_C[action]))
        except Exception as error:
            # Counted as a fault, whatever it is: the policy's bug must not end this task.
            self._log.exception("trial_policy_failed", error, **self._names())
            action, is_fault = -1, True
        middle_s = self._clock.monotonic_s()
        self._explainer.decide_by(inputs, inputs.rule)
        end_s = self._clock.monotonic_s()
        counts.decisions += 1
        if not is_first:  # the first is slow: its arrays are made
            counts.decision_s += middle_s - start_s
            counts.active_decision_s += end_s - middle_s
        tier_C = inputs.fleet.arrays.tier_C
        counts.active_candidates[choice.action] += 1
        counts.active_tiers[int(tier_C[choice.action])] += 1
        if is_fault:
            counts.faults += 1
            self._metrics.shadow_decisions.labels(choice="fault").inc()
            return
        counts.candidates[action] += 1
        counts.tiers[int(tier_C[action])] += 1
        is_same, is_same_tier = action == choice.action, tier_C[action] == tier_C[choice.action]
        counts.same_candidate += is_same
        counts.same_tier += bool(is_same_tier)
        if not is_same:
            ruler = self._ruler
            gain = ruler.measure(inputs, action).value - ruler.measure(inputs, choice.action).value
            counts.value_gain += gain
        label = "same" if is_same else "same_tier" if is_same_tier else "other_tier"
        self._metrics.shadow_decisions.labels(choice=label).inc()

    def _measure(self, ended: _Ended) -> None:
        choice = ended.choice
        measured = self._ruler.measure(choice.inputs, choice.action)
        value = ended.reward - measured.charge
        counts = self._canary
        arm = counts.canary if ended.is_canary else counts.control
        arm.requests += 1
        arm.missed += ended.is_missed
        arm.value_sum += value
        arm.decision_s += choice.end_s - choice.start_s
        # Less what the moment offered: most of what values differ by is load, which the draw does
        # not depend on, and not the choice.
        counts.values.add(ended.is_canary, value - measured.best)
        self._misses.add(ended.is_canary, float(ended.is_missed))
        name = (Arm.CANARY if ended.is_canary else Arm.CONTROL).value
        outcome = "missed" if ended.is_missed else "on_time"
        self._metrics.trial_requests.labels(arm=name, outcome=outcome).inc()

    def _check(self) -> None:
        """Stops a canary that breaks a limit."""
        assert self._guard is not None
        counts, limits = self._canary, self.limits
        counts.faults = sum(self._guard.counts[reason] for reason in _FAULTS)
        if counts.faults >= _MOST_FAULTS:
            self._stop(REASON_FAULTS, f"failed in {counts.faults} decisions: {self._faults()}")
            return
        effect = self._misses.effect
        excess = bounds_of(effect, 2.0 * _MISS_ALPHA, 1.0)
        if excess.low > limits.misses:
            text = f"misses {excess.mean:.3f} more of its requests than its control"
            self._stop(REASON_MISSES, f"{text}, at least {excess.low:.3f}; limit {limits.misses:g}")
            return
        if effect.drawn >= _MISS_WINDOW:
            self._misses = Arms(0.0, 1.0)
        canary_s, control_s = _mean_s(counts.canary), _mean_s(counts.control)
        are_timed = min(counts.canary.requests, counts.control.requests) >= _LEAST_TIMED
        if are_timed and canary_s > max(limits.decision_s, _SLOWER * control_s):
            text = f"takes {canary_s:.6f} s for a decision, its control {control_s:.6f} s"
            self._stop(REASON_SLOW, f"{text}; limit {limits.decision_s:g} s")

    def _faults(self) -> str:
        counts = self.guard.counts
        return ", ".join(f"{reason} {counts[reason]}" for reason in _FAULTS if counts[reason])

    def _stop(self, reason: str, detail: str) -> None:
        self.is_deciding = False
        self._problem, self._detail = reason, detail[:200]
        self._metrics.trial_stops.labels(reason=reason).inc()
        self._log.warning("trial_stopped", reason=reason, detail=detail, **self._names())
        self._metrics.trial_info.clear()

    def _begin(self, version: str) -> None:
        """Forgets what was on trial before."""
        self.is_deciding = self._is_suspended = False
        self._rule = self._guard = None
        self._problem = self._detail = ""
        self._ended.clear()
        self._began_s = self._clock.monotonic_s()
        self._last_sequence, self._salt = 0, version.encode()[:64]
        self._metrics.trial_info.clear()
        self._shadow, self._canary = ShadowCounts(), CanaryCounts()
        self._misses = Arms(0.0, 1.0)

    def _names(self) -> dict[str, str | int]:
        tried = self._tried
        assert tried is not None
        stage = "canary" if tried.is_canary else "shadow"
        policy = tried.policy
        return {
            "rollout": tried.rollout,
            "policy": policy.name[:64],
            "policy_version": policy.version[:64],
            "stage": stage,
        }

    def _show(self) -> None:
        names = self._names()
        labels = (names["policy"], names["policy_version"], names["stage"])
        self._metrics.trial_info.labels(*map(str, labels)).set(1.0)


def _is_same(before: Tried, now: Tried) -> bool:
    """Returns whether what was seen before goes on counting."""
    return (before.rollout, before.is_canary, before.policy.version) == (
        now.rollout,
        now.is_canary,
        now.policy.version,
    )


def _mean_s(arm: ArmCounts) -> float:
    return arm.decision_s / arm.requests if arm.requests else 0.0
