"""What a trial does in the background: asks a shadow about past decisions, measures a canary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from router import watch
from router.bound import Rule
from router.explanation import Explainer
from router.guard import FAULTS, Guard
from router.ruler import Ruler
from router.sequential import Arms, bounds_of
from router.watch import Figures, Watcher, WatchLimits
from services.common.log import Logger
from services.router_inference.job import Arm, Choice, Job, Outcome
from services.router_inference.policy.trial_counts import (
    REASON_FAULTS,
    REASON_MISSES,
    REASON_SLOW,
    ArmCounts,
    CanaryCounts,
    PeriodCounts,
    ShadowCounts,
    SwitchCounts,
)
from services.router_inference.records.metrics import RouterMetrics

_MOST_FAULTS = 3
_LEAST_TIMED = 30
_SLOWER = 4.0
"""A canary is too slow only if it takes so many times as long as the policy in force, too."""
_MISS_ALPHA = 0.001
"""Chance that a canary as good as its control is stopped for its misses, in each window."""
_MISS_WINDOW = 1_000
"""Requests of both arms after which misses are counted anew, so that new ones show soon."""


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


class Ended(NamedTuple):
    """A request of either arm that ended.

    Attributes:
        choice: its decision.
        is_canary: the policy on trial decided.
        reward: of its first choice.
        is_missed: it was late, failed, or given up on its first candidate.
    """

    choice: Choice
    is_canary: bool
    reward: float
    is_missed: bool


class Shadow:
    """Asks a policy about decisions that were taken, and the one in force again beside it.

    Attributes:
        counts: what came of it.
        last_sequence: number of the newest decision that was looked at.
    """

    def __init__(
        self,
        rule: Rule,
        explainer: Explainer,
        ruler: Ruler,
        monotonic_s: Callable[[], float],
        metrics: RouterMetrics,
        log: Logger,
    ) -> None:
        """Takes the policy's rule, and what takes decisions again and measures them."""
        self._rule = rule
        self._explainer = explainer
        self._ruler = ruler
        self._monotonic_s = monotonic_s
        self._metrics = metrics
        self._log = log
        self.counts = ShadowCounts()
        self.last_sequence = 0

    def ask(self, choice: Choice) -> None:
        """Asks about a decision; one that a pin left no choice, or the dice made, says nothing."""
        self.last_sequence = max(self.last_sequence, choice.sequence)
        if choice.inputs.asked.tier_pin >= 0 or choice.explored:
            return
        counts, tier_C = self.counts, choice.inputs.fleet.arrays.tier_C
        action = self._take_again(choice)
        counts.decisions += 1
        counts.active_candidates[choice.action] += 1
        counts.active_tiers[int(tier_C[choice.action])] += 1
        if action is None:
            counts.faults += 1
            self._metrics.shadow_decisions.labels(choice="fault").inc()
            return
        counts.candidates[action] += 1
        counts.tiers[int(tier_C[action])] += 1
        is_same, is_same_tier = action == choice.action, tier_C[action] == tier_C[choice.action]
        counts.same_candidate += is_same
        counts.same_tier += bool(is_same_tier)
        if not is_same:
            inputs, measure = choice.inputs, self._ruler.measure
            gain = measure(inputs, action).value - measure(inputs, choice.action).value
            counts.value_gain += gain
        label = "same" if is_same else "same_tier" if is_same_tier else "other_tier"
        self._metrics.shadow_decisions.labels(choice=label).inc()

    def _take_again(self, choice: Choice) -> int | None:
        """Returns what the policy would have chosen, None if it fails; takes the time of both."""
        inputs, found = choice.inputs, None
        start_s = self._monotonic_s()
        try:
            action, board = self._explainer.decide_by(inputs, self._rule)
            if action >= 0 and bool(board.allowed_C[action]):
                found = action
        except Exception as error:
            # Counted as a fault, whatever it is: the policy's bug must not end this task.
            self._log.exception("trial_policy_failed", error)
        middle_s = self._monotonic_s()
        self._explainer.decide_by(inputs, inputs.rule)
        end_s = self._monotonic_s()
        if self.counts.decisions:  # the first is slow: its arrays are made
            self.counts.decision_s += middle_s - start_s
            self.counts.active_decision_s += end_s - middle_s
        return found


class Canary:
    """Measures what a canary and its control decided, and knows when it must stop.

    Attributes:
        guard: decides for the canary's requests.
        counts: what came of it.
    """

    def __init__(self, guard: Guard, ruler: Ruler, metrics: RouterMetrics) -> None:
        """Takes the guard of its policy, and what measures choices."""
        self.guard = guard
        self.counts = CanaryCounts()
        self._ruler = ruler
        self._metrics = metrics
        self._misses = Arms(0.0, 1.0)

    def measure(self, ended: Ended) -> None:
        """Takes in the end of a request of either arm."""
        choice, counts = ended.choice, self.counts
        measured = self._ruler.measure(choice.inputs, choice.action)
        value = ended.reward - measured.charge
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
        priority = choice.standing.priority.label
        self._metrics.trial_requests.labels(arm=name, outcome=outcome, priority=priority).inc()

    def problem(self, limits: TrialLimits) -> tuple[str, str] | None:
        """Returns which limit it breaks, as a reason and in words; None for none."""
        counts, faults = self.counts, self.guard.counts
        counts.faults = sum(faults[reason] for reason in FAULTS)
        if counts.faults >= _MOST_FAULTS:
            named = ", ".join(f"{reason} {faults[reason]}" for reason in FAULTS if faults[reason])
            return REASON_FAULTS, f"failed in {counts.faults} decisions: {named}"
        effect = self._misses.effect
        excess = bounds_of(effect, 2.0 * _MISS_ALPHA, 1.0)
        if excess.low > limits.misses:
            text = f"misses {excess.mean:.3f} more of its requests than its control"
            return REASON_MISSES, f"{text}, at least {excess.low:.3f}; limit {limits.misses:g}"
        if effect.drawn >= _MISS_WINDOW:
            self._misses = Arms(0.0, 1.0)
        canary_s, control_s = _mean_s(counts.canary), _mean_s(counts.control)
        are_timed = min(counts.canary.requests, counts.control.requests) >= _LEAST_TIMED
        if are_timed and canary_s > max(limits.decision_s, _SLOWER * control_s):
            text = f"takes {canary_s:.6f} s for a decision, its control {control_s:.6f} s"
            return REASON_SLOW, f"{text}; limit {limits.decision_s:g} s"
        return None


class Switchback:
    """Counts requests of periods in which one policy decides all of them.

    Attributes:
        guard: decides in the periods of the policy on trial.
        counts: what came of it.
        decides_all: the policy on trial decides in the present period.
    """

    def __init__(self, guard: Guard, limits: TrialLimits, metrics: RouterMetrics) -> None:
        """Takes the guard of its policy, and what stops it."""
        self.guard = guard
        self.counts = SwitchCounts()
        self.decides_all = False
        self._metrics = metrics
        self._figures = Figures()
        self._watcher = Watcher(WatchLimits(limits.misses, limits.misses))
        self._began_s = self._counts_s = 0.0
        self._last_counts_s, self._last_decided = math.inf, False

    def turn(self, period: int, decides_all: bool, settle_s: float, now_s: float) -> None:
        """Begins a period, or goes on with it."""
        counts = self.counts
        if period == counts.period:
            return
        is_next = period == counts.period + 1
        counts.last = counts.present if is_next else PeriodCounts()
        counts.period, counts.present = period, PeriodCounts()
        # Nothing here is of a period before that was not heard of.
        self._last_counts_s = self._counts_s if is_next else math.inf
        self._last_decided = self.decides_all
        self._began_s, self._counts_s = now_s, now_s + settle_s
        self.decides_all = decides_all

    def on_end(self, job: Job, reward: float, slow_s: float) -> None:
        """Counts an end; what a client cancelled or only claims is not told here."""
        is_given_up = job.is_rescued or job.retry_count > 0
        is_missed = is_given_up or job.outcome is not Outcome.ON_TIME
        is_trial = job.arm is Arm.CANARY
        if job.arrival_s >= self._began_s:
            period, counts_s = self.counts.present, self._counts_s
            decided = self.decides_all
        else:
            period, counts_s = self.counts.last, self._last_counts_s
            decided = self._last_decided
        if is_trial is not decided:
            return
        name = (Arm.CANARY if is_trial else Arm.CONTROL).value
        outcome = "missed" if is_missed else "on_time"
        priority = job.request.priority.label
        self._metrics.trial_requests.labels(arm=name, outcome=outcome, priority=priority).inc()
        choice = job.choice
        if is_trial:
            is_slow = choice is not None and choice.end_s - choice.start_s > slow_s
            is_failed = job.outcome is Outcome.FAILED
            self._figures.add(
                job.load_class, is_missed=is_missed, is_failed=is_failed, is_slow=is_slow
            )
        if job.arrival_s >= counts_s:
            period.requests += 1
            period.missed += is_missed
            period.reward += reward

    def problem(self, before: Figures) -> tuple[str, str] | None:
        """Returns which limit it breaks, as a reason and in words; None for none.

        Args:
            before: last figures of the policy in force, which nothing is compared with at once.
        """
        faults = self.guard.counts
        self.counts.faults = sum(faults[reason] for reason in FAULTS)
        self._figures.faults = float(self.counts.faults)
        broken = self._watcher.look(before, self._figures)
        return None if broken is None else (_AS_CANARY[broken.reason], broken.detail)


_AS_CANARY = {
    watch.REASON_MISSES: REASON_MISSES,
    watch.REASON_ERRORS: REASON_MISSES,
    watch.REASON_FAULTS: REASON_FAULTS,
    watch.REASON_SLOW: REASON_SLOW,
}
"""Reasons of the rule that compares with last figures, as those of a trial."""


def _mean_s(arm: ArmCounts) -> float:
    return arm.decision_s / arm.requests if arm.requests else 0.0
