"""What a stage of a rollout has seen, added up over routers, and what is to be said of it.

Pure functions of counts. A verdict is one of three kinds: the policy may go on, it must not, or
neither can be said, and then a person decides. None of them yet means that the stage goes on.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, TypeVar

from router.sequential import (
    Effect,
    Judgement,
    Plan,
    bounds_of,
    judge_pairs,
    smallest_shown,
)

_ALWAYS_ONE = 0.8
"""A policy that always takes one tier is suspect if the active one does in no more than so many."""
_SLOWER = 4.0
"""A policy is too slow only if it takes so many times as long as the active one, too."""

_LEAST_IN_PERIOD = 10
"""A pair of periods with fewer requests in either says nothing."""

Counts = TypeVar("Counts", bound="ShadowSeen | CanarySeen")


class Verdict(enum.Enum):
    """What a stage found; the values are those of the contract's `RolloutVerdict`."""

    NONE = 0
    BETTER = 1
    WORSE = 2
    CANNOT_TELL = 3


class Finding(NamedTuple):
    """A verdict and why.

    Attributes:
        verdict: what was found.
        text: one sentence for people.
    """

    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True)
class ShadowSeen:
    """Decisions taken again; see `ShadowCounts` of the contract."""

    decision_count: float = 0.0
    same_candidate_count: float = 0.0
    same_tier_count: float = 0.0
    fault_count: float = 0.0
    top_candidate_count: float = 0.0
    active_top_candidate_count: float = 0.0
    top_tier_count: float = 0.0
    active_top_tier_count: float = 0.0
    decision_s: float = 0.0
    active_decision_s: float = 0.0
    value_gain: float = 0.0

    def __str__(self) -> str:
        """Returns it for people."""
        count = max(1.0, self.decision_count)
        return (
            f"asked about {self.decision_count:.0f} decisions: the same tier in "
            f"{self.same_tier_count / count:.0%}, {self.fault_count:.0f} failed, predicted value "
            f"{self.value_gain / count:+.4f}, {1e6 * self.decision_s / count:.0f} us each"
        )


@dataclass(frozen=True, slots=True)
class CanarySeen:
    """Requests of both arms; see `CanaryCounts` of the contract."""

    request_count: float = 0.0
    missed_count: float = 0.0
    value_sum: float = 0.0
    control_count: float = 0.0
    control_missed_count: float = 0.0
    control_value_sum: float = 0.0
    fault_count: float = 0.0
    decision_s: float = 0.0
    control_decision_s: float = 0.0
    effect_count: float = 0.0
    effect_total: float = 0.0
    effect_square: float = 0.0

    @property
    def effect(self) -> Effect:
        """The sums of the sequential test."""
        return Effect(self.effect_count, self.effect_total, self.effect_square)

    def __str__(self) -> str:
        """Returns it for people."""
        canary, control = max(1.0, self.request_count), max(1.0, self.control_count)
        return (
            f"{self.request_count:.0f} requests against {self.control_count:.0f}: "
            f"value {self.value_sum / canary:.4f} against {self.control_value_sum / control:.4f}, "
            f"in time {1.0 - self.missed_count / canary:.4f} against "
            f"{1.0 - self.control_missed_count / control:.4f}"
        )


NOTHING_SEEN = CanarySeen()
"""No request of either arm."""


def total(kind: type[Counts], parts: Iterable[Counts]) -> Counts:
    """Returns what several routers have seen together."""
    names = [each.name for each in fields(kind)]
    sums = dict.fromkeys(names, 0.0)
    for part in parts:
        for name in names:
            sums[name] += getattr(part, name)
    return kind(**sums)


@dataclass(frozen=True, slots=True)
class SwitchSeen:
    """Requests of the last two periods of a switchback; see `SwitchbackCounts` of the contract."""

    period: float = 0.0
    request_count: float = 0.0
    missed_count: float = 0.0
    reward_sum: float = 0.0
    last_request_count: float = 0.0
    last_missed_count: float = 0.0
    last_reward_sum: float = 0.0
    fault_count: float = 0.0


class PeriodSeen(NamedTuple):
    """Requests of one period.

    Attributes:
        requests: that ended.
        missed: of these.
        reward: sum of what they earned.
    """

    requests: float = 0.0
    missed: float = 0.0
    reward: float = 0.0

    def plus(self, other: PeriodSeen) -> PeriodSeen:
        """Returns both together."""
        return PeriodSeen(*(one + two for one, two in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True)
class SwitchPlan:
    """How the whole mesh is switched back and forth.

    Attributes:
        pairs: of periods, one with each policy; 0 leaves the stage out.
        period_s: length of a period, seconds.
        alpha: chance that equal policies are ever called better or worse.
        settle_share: part of each period whose requests do not count, so that neither what the
            other policy left under way nor the pressure it made is taken for this one's.
    """

    pairs: int
    period_s: float
    alpha: float
    settle_share: float = 1.0 / 3.0

    @property
    def settle_s(self) -> float:
        """Time at the beginning of a period whose requests do not count, seconds."""
        return self.settle_share * self.period_s


class TrialSeen(NamedTuple):
    """What a router reports of the policy on trial.

    Attributes:
        rollout: number of the rollout it tries, or tried.
        is_canary: what it counts is of that stage.
        problem: why it stopped by itself, a reason; empty if it did not.
        detail: the same in words.
        shadow: decisions taken again.
        canary: requests of both arms.
        switch: requests of periods; None in other stages.
    """

    rollout: int
    is_canary: bool
    problem: str = ""
    detail: str = ""
    shadow: ShadowSeen = ShadowSeen()
    canary: CanarySeen = CanarySeen()
    switch: SwitchSeen | None = None


@dataclass(frozen=True, slots=True)
class ShadowLimits:
    """What a policy must keep to in shadow.

    Attributes:
        decisions: after so many there is a verdict.
        decision_s: mean time of a decision, seconds.
        value_loss: how much less its choices may be worth by prediction, on average.
    """

    decisions: int
    decision_s: float
    value_loss: float


def judge_shadow(seen: ShadowSeen, limits: ShadowLimits) -> Finding | None:
    """Returns what a shadow shows; None as long as it is too little."""
    if seen.fault_count:
        return Finding(Verdict.WORSE, f"it failed in {seen.fault_count:.0f} decisions; {seen}")
    count = seen.decision_count
    if count < limits.decisions:
        return None
    mean_s, active_s = seen.decision_s / count, seen.active_decision_s / count
    # Written so that what is no number does not pass.
    if not (mean_s <= limits.decision_s or mean_s <= _SLOWER * active_s):
        text = f"a decision takes {mean_s:.6f} s, the active policy's {active_s:.6f} s"
        return Finding(Verdict.WORSE, f"{text}; limit {limits.decision_s:g} s; {seen}")
    for name, top, active_top in (
        ("candidate", seen.top_candidate_count, seen.active_top_candidate_count),
        ("tier", seen.top_tier_count, seen.active_top_tier_count),
    ):
        if top >= count and active_top <= _ALWAYS_ONE * count:
            text = f"it always takes the same {name}, the active policy in {active_top / count:.0%}"
            return Finding(Verdict.WORSE, f"{text}; {seen}")
    gain = seen.value_gain / count
    if not gain >= -limits.value_loss:
        text = f"its choices are worth {-gain:.3f} less by prediction, limit {limits.value_loss:g}"
        return Finding(Verdict.WORSE, f"{text}; {seen}")
    return Finding(Verdict.BETTER, f"it is safe to ask; {seen}")


def judge_canary(seen: CanarySeen, plan: Plan) -> Finding | None:
    """Returns what a canary shows; None as long as the test goes on."""
    judgement = plan.judge(seen.effect)
    if judgement is Judgement.GO_ON:
        return None
    text = f"{difference(seen, plan)}; {seen}"
    if judgement is Judgement.BETTER:
        return Finding(Verdict.BETTER, f"it earns more: {text}")
    if judgement is Judgement.WORSE:
        return Finding(Verdict.WORSE, f"it earns less: {text}")
    reason = f"no difference of {plan.smallest:g} or more"
    return Finding(Verdict.CANNOT_TELL, f"{reason}: {text}")


def difference(seen: CanarySeen, plan: Plan) -> str:
    """Returns how large the effect is, as far as it is known."""
    found = bounds_of(seen.effect, plan.alpha, plan.reach)
    return (
        f"difference {found.mean:+.4f}, between {found.low:+.4f} and {found.high:+.4f} with "
        f"probability {1.0 - plan.alpha:g}"
    )


def decides_all(rollout: int, version: str, period: int) -> bool:
    """Returns whether the policy on trial decides in a period of a switchback.

    Of two periods it has one; a coin for each pair, which nobody can foresee who does not know the
    rollout's number, says which.
    """
    pair, second = divmod(period - 1, 2)
    text = f"{rollout} {version} {pair}".encode()
    coin = hashlib.blake2b(text, digest_size=1).digest()[0] & 1
    return bool(coin) is not bool(second)


def pair_difference(trial: PeriodSeen, control: PeriodSeen) -> float | None:
    """Returns by how much more a request earned under the policy on trial; None if too few did."""
    if min(trial.requests, control.requests) < _LEAST_IN_PERIOD:
        return None
    earned = trial.reward / trial.requests - control.reward / control.requests
    return max(-1.0, min(1.0, earned))  # no request earns more than 1, whatever a router reports


def judge_switchback(differences: Sequence[float], plan: SwitchPlan) -> Finding | None:
    """Returns what pairs of periods show; None as long as the switching goes on.

    A few pairs show large effects alone. Where they show none, a policy that the canary found
    better goes on unless it earned less here; then nobody can tell.
    """
    judgement = judge_pairs(differences, plan.alpha)
    text = switched(differences, plan)
    if judgement is Judgement.WORSE:
        return Finding(Verdict.WORSE, f"it earns less when it decides everything: {text}")
    if judgement is Judgement.BETTER:
        return Finding(Verdict.BETTER, f"it earns more when it decides everything: {text}")
    if len(differences) < plan.pairs:
        return None
    if math.fsum(differences) >= 0.0:
        return Finding(Verdict.BETTER, f"it earns no less when it decides everything: {text}")
    what = "it may earn less when it decides everything, or not"
    return Finding(Verdict.CANNOT_TELL, f"{what}: {text}")


def switched(differences: Sequence[float], plan: SwitchPlan) -> str:
    """Returns how large the effect of switching the whole mesh is, as far as it is known."""
    if not differences:
        return f"no pair of periods of {plan.period_s:g} s is over yet"
    mean = math.fsum(differences) / len(differences)
    shown = min(2.0, smallest_shown(differences, plan.alpha))
    return (
        f"reward {mean:+.4f} a request over {len(differences)} pairs of periods of "
        f"{plan.period_s:g} s; {shown:.4f} would show with probability {1.0 - plan.alpha:g}"
    )
